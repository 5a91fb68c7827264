"""``tome-serve classify``: the best classes of image files or of standard input, here."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.commands.offline import (
    check_readable,
    load_runner,
    parse_schedule,
    pick_model,
    read_file,
    run_one,
    tokens_left,
)
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.runner import Runner
from server.errors import ConfigError, RequestError
from server.settings import ModelSettings
from tome_core.schedule import Schedule


def classify(
    settings: ModelSettings,
    images: Sequence[Path],
    r: str,
    model: str,
    top_k: int,
    *,
    as_json: bool = False,
) -> int:
    """Print the best classes of each image; return the exit code.

    An image that fails is reported on stderr, the others are classified; then the code is 1.

    Args:
        images: files; ``-`` is standard input.
        as_json: print one JSON object a line, with the members of the answer over HTTP and
            ``file``; or with ``file`` and ``error``.

    Raises:
        ConfigError: the settings are wrong.
    """
    readable = [image for image in images if _is_readable(image, as_json)]
    if not readable:
        return 1  # without the seconds that the model takes
    runner = load_runner(settings, pick_model(settings, model))
    if not runner.model.labels:
        raise ConfigError(f"model {runner.model.spec.name} has no classifier")
    schedule = parse_schedule(runner, r)
    top_k = min(top_k, len(runner.model.labels))
    failures = len(images) - len(readable)
    for image in readable:
        try:
            output, _ = run_one(runner, read_file(image), schedule, top_k, "classes")
        except (ConfigError, RequestError) as error:
            failures += 1
            _report_failure(image, error, as_json)
            continue
        if as_json:
            _print_json(_result(image, runner, schedule, output))
        else:
            _print_classes(image if len(images) > 1 else None, runner, output)
    if not as_json:
        print(tokens_left(runner, schedule))
    return 1 if failures else 0


def _print_classes(image: Path | None, runner: Runner, output: ImageOutput) -> None:
    """Print the classes of one image, below its name if ``image`` is given."""
    if image is not None:
        print(_printable(f"{image}:"))
    for score, index in zip(output.scores, output.classes, strict=True):
        print(f"{score:7.4f}  {runner.model.labels[index]}")


def _result(
    image: Path,
    runner: Runner,
    schedule: Schedule,
    output: ImageOutput,
) -> dict[str, Any]:
    labels = runner.model.labels
    tokens = runner.tokens(schedule)
    return {
        "file": str(image),
        "model": runner.model.spec.name,
        "r": str(schedule),
        "predictions": [
            {"label": labels[index], "index": index, "score": score}
            for score, index in zip(output.scores, output.classes, strict=True)
        ],
        "tokens": {"input": tokens[0], "output": tokens[-1]},
    }


def _is_readable(image: Path, as_json: bool) -> bool:
    """Return whether a file can be opened, and report it if it cannot."""
    try:
        check_readable(image)
    except ConfigError as error:
        _report_failure(image, error, as_json)
        return False
    return True


def _report_failure(image: Path, error: Exception, as_json: bool) -> None:
    # A ConfigError names the file. An error of decoding does not, since over HTTP there is none.
    subject = "" if isinstance(error, ConfigError) else f"{image}: "
    print(_printable(f"tome-serve: {subject}{error}"), file=sys.stderr)
    if as_json:
        _print_json({"file": str(image), "error": str(error)})


def _print_json(members: dict[str, Any]) -> None:
    print(json.dumps(members), flush=True)


def _printable(text: str) -> str:
    """Return ``text`` with question marks for the bytes of file names that are not UTF-8."""
    return text.encode(errors="replace").decode()
