"""``tome-serve classify``: the best classes of files or of standard input, here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from server.commands.file_prediction import (
    BestClasses,
    FilePrediction,
    SecondPassRule,
    predict,
    predict_image,
)
from server.commands.flags import Windows
from server.commands.inputs import FileInputs, read_inputs
from server.commands.offline import (
    check_readable,
    load_runner,
    parse_schedule,
    pick_model,
    read_file,
    tokens_left,
)
from server.engine.execution.runner import Runner
from server.errors import ConfigError, RequestError
from server.media.decoded import Window
from server.media.modality import Modality
from server.settings import ModelSettings
from tome_core.schedule import Schedule


def classify(
    settings: ModelSettings,
    files: Sequence[Path],
    r: str,
    model: str,
    top_k: int,
    *,
    confidence: float | Literal["auto"] | None = None,
    confidence_r: str | None = None,
    windows: Windows = "mean",
    clips: int | None = None,
    crops: int | None = None,
    text: str = "",
    as_json: bool = False,
) -> int:
    """Print the best classes of each image, sound or video; return the exit code.

    A file that fails is reported on stderr, the others are classified; then the code is 1.

    Args:
        files: ``-`` is standard input.
        confidence: the margin between the two best probabilities below which an image runs again,
            under the schedule ``confidence_r``; ``auto`` takes it from the model's profile.
        windows: of a sound or a video: the first, the mean, or each as well.
        clips, crops, text: see `pick_model`.
        as_json: print one JSON object a line, with the members of the answer over HTTP and
            ``file``; or with ``file`` and ``error``.

    Raises:
        ConfigError: the settings are wrong.
    """
    readable = [file for file in files if _is_readable(file, as_json)]
    if not readable:
        return 1  # without the seconds that the model takes
    spec = pick_model(settings, model, clips, crops, profiles=confidence == "auto", text=text)
    runner = load_runner(settings, spec)
    if not runner.model.labels:
        raise ConfigError(f"model {runner.model.spec.name} has no classifier")
    takes_images = runner.model.transform.modality is Modality.IMAGE
    if takes_images and windows != "mean":
        raise ConfigError(f"model {runner.model.spec.name} takes images, which have no windows")
    schedule = parse_schedule(runner, r)
    second = _second_pass(runner, schedule, confidence, confidence_r)
    top_k = min(top_k, len(runner.model.labels))
    failures = len(files) - len(readable)
    for file in readable:
        try:
            inputs = read_inputs(read_file(file), runner.model.transform)
        except (ConfigError, RequestError) as error:
            failures += 1
            _report_failure(file, error, as_json)
            continue
        if takes_images:
            found = predict_image(runner, inputs.rows[0], schedule, top_k, second)
            if confidence is not None:  # also at r=0, where no image runs twice
                found = replace(found, confident=True)
        else:
            found = predict(runner, inputs, schedule, top_k, windows)
        if as_json:
            _print_json(_result(file, runner, inputs, found))
        else:
            _print_classes(file if len(files) > 1 else None, runner, inputs, found)
    if not as_json:
        print(tokens_left(runner, schedule))
    return 1 if failures else 0


def _second_pass(
    runner: Runner,
    schedule: Schedule,
    confidence: float | Literal["auto"] | None,
    confidence_r: str | None,
) -> SecondPassRule | None:
    """Return when images run again; None if none does.

    Raises:
        ConfigError: the model does not say how certain it is, its profile has no margin for
            ``schedule``, or the second pass merges as much.
    """
    if confidence is None:
        if confidence_r is not None:
            raise ConfigError("--confidence-r is the second pass of --confidence")
        return None
    model = runner.model
    if model.transform.modality is not Modality.IMAGE or model.activation != "softmax":
        raise ConfigError(
            f"--confidence is for models of images with softmax, which {model.spec.name} is not"
        )
    second = parse_schedule(runner, confidence_r or "0")
    if sum(runner.tokens(second)) > sum(runner.tokens(schedule)):
        margin = confidence if confidence != "auto" else _profiled_margin(runner, schedule, second)
        return SecondPassRule(margin, second)
    if confidence_r is None:
        return None  # the first pass is exact already
    raise ConfigError("--confidence-r must merge less than -r")


def _profiled_margin(runner: Runner, schedule: Schedule, second: Schedule) -> float:
    if second != Schedule.constant(0):
        raise ConfigError("--confidence auto is for a second pass at r=0; name a margin")
    row = runner.model.profile.get(str(schedule))
    if row is None or row.margin is None:
        raise ConfigError(
            f"the profile of {runner.model.spec.name} has no margin for r={schedule}; `tome-serve"
            " evaluate --profile` or `tune` measures it, or name one from 0 to 1"
        )
    return row.margin


def _print_classes(
    file: Path | None,
    runner: Runner,
    inputs: FileInputs,
    found: FilePrediction,
) -> None:
    """Print the classes of one file, below its name if ``file`` is given."""
    if file is not None:
        print(_printable(f"{file}:"))
    for score, index in zip(found.best.scores, found.best.classes, strict=True):
        print(f"{score:7.4f}  {runner.model.labels[index]}")
    has_crops = any(window.crop for window in inputs.windows)
    for window, best in zip(inputs.windows, found.each, strict=False):
        label = runner.model.labels[best.classes[0]]
        place = f"from {window.start:.2f} to {window.end:.2f} s"
        if has_crops:
            place += f", crop {window.crop}"
        print(f"{best.scores[0]:7.4f}  {label}  {place}")


def _result(
    file: Path,
    runner: Runner,
    inputs: FileInputs,
    found: FilePrediction,
) -> dict[str, Any]:
    labels = runner.model.labels
    schedule = found.schedules[-1]
    tokens = runner.tokens(schedule)
    result: dict[str, Any] = {
        "file": str(file),
        "model": runner.model.spec.name,
        "r": str(schedule),
        "predictions": _predictions(labels, found.best),
        "tokens": {"input": tokens[0], "output": tokens[-1]},
    }
    if found.confident is not None:
        result["passes"] = [{"r": str(each)} for each in found.schedules]
        result["confident"] = found.confident
    if inputs.media is not None:
        result["modality"] = runner.model.transform.modality
        result["media"] = asdict(inputs.media)
    if found.each:
        result["windows"] = [
            {
                **_place(window, runner.model.transform.modality),
                "r": str(schedule),
                "predictions": _predictions(labels, best),
                "tokens": result["tokens"],
            }
            for window, best in zip(inputs.windows, found.each, strict=True)
        ]
    return result


def _place(window: Window, modality: Modality) -> dict[str, Any]:
    """Return where a window lies; a sound has no crops."""
    place = asdict(window)
    if modality is Modality.AUDIO:
        del place["crop"]
    return place


def _predictions(labels: Sequence[str], best: BestClasses) -> list[dict[str, Any]]:
    return [
        {"label": labels[index], "index": index, "score": score}
        for score, index in zip(best.scores, best.classes, strict=True)
    ]


def _is_readable(file: Path, as_json: bool) -> bool:
    """Return whether a file can be opened, and report it if it cannot."""
    try:
        check_readable(file)
    except ConfigError as error:
        _report_failure(file, error, as_json)
        return False
    return True


def _report_failure(file: Path, error: Exception, as_json: bool) -> None:
    # A ConfigError names the file. An error of decoding does not, since over HTTP there is none.
    subject = "" if isinstance(error, ConfigError) else f"{file}: "
    print(_printable(f"tome-serve: {subject}{error}"), file=sys.stderr)
    if as_json:
        _print_json({"file": str(file), "error": str(error)})


def _print_json(members: dict[str, Any]) -> None:
    print(json.dumps(members), flush=True)


def _printable(text: str) -> str:
    """Return ``text`` with question marks for the bytes of file names that are not UTF-8."""
    return text.encode(errors="replace").decode()
