"""``tome-serve evaluate``: accuracy and speed for each schedule, over labelled files."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.table import Table

from server.catalog.profiles import ProfileRow, cascade_speedup
from server.commands.agreement import best_and_margin
from server.commands.console import make_progress, table_console
from server.commands.datasets import LabelledData, open_dataset
from server.commands.labelled_batches import LabelledBatch, batches
from server.commands.offline import (
    load_runner,
    parse_schedules,
    pick_model,
    run_conditions,
)
from server.commands.profile_files import model_identity
from server.commands.proportions import wilson_interval
from server.commands.row_qualities import with_agreement, with_exact_agreement, with_margin
from server.commands.speeds import images_per_second, in_turn, speedups
from server.commands.window_means import WindowMeans
from server.engine.device.readout import ACTIVATIONS
from server.engine.execution.runner import Runner
from server.errors import ConfigError
from server.logs import log_step
from server.media.modality import Modality
from server.media.transforms import VideoTransform
from server.settings import ModelSettings
from tome_core.rules import RuleName
from tome_core.schedule import Schedule

log = logging.getLogger("tome.server")

# Of images, where none are named.
IMAGE_SCHEDULES = ("0", "4", "8", "11", "12", "13", "16", "17", "20", "25", "15:-0.5", "16:-1")

# What is counted for the accuracy, and for the speed.
_FILES = {modality: f"{modality.noun}s" for modality in Modality}
_INPUTS = {
    Modality.IMAGE: "images",
    Modality.AUDIO: "windows",
    Modality.VIDEO: "windows",
}


@dataclass
class _Measurement:
    """What was measured under one schedule, by one rule.

    Attributes:
        means: counts the files whose best class was right.
        batch_sizes, seconds: of each batch; the time of one image or window.
        classes, margins, labels: of the images of each batch, where the model says how certain it
            is: the best class, the margin between the two best probabilities, and the true class.
    """

    runner: Runner
    schedule: Schedule
    means: WindowMeans = field(default_factory=WindowMeans)
    batch_sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    classes: list[npt.NDArray[np.int64]] = field(default_factory=list)
    margins: list[npt.NDArray[np.float64]] = field(default_factory=list)
    labels: list[npt.NDArray[np.int64]] = field(default_factory=list)


def evaluate(
    settings: ModelSettings,
    folder: Path | None,
    limit: int | None,
    r: Sequence[str] | None,
    model: str,
    batch: int,
    *,
    rules: Sequence[RuleName] = (),
    clips: int | None = None,
    crops: int | None = None,
    text: str = "",
) -> tuple[list[ProfileRow], dict[str, object]]:
    """Measure and print the tables; return their rows and the conditions of the measurement.

    Args:
        folder, limit: see `open_dataset`.
        r: the schedules; None for `IMAGE_SCHEDULES`, or for sounds and videos the levels of the
            model.
        rules: by which tokens merge, the one that speeds are compared with first; none: by that of
            the model's entry.
        clips, crops, text: see `pick_model`.

    Raises:
        ConfigError: there is no such data, one of its classes is not a label of the model, or a
            schedule does not fit it.
    """
    spec = pick_model(settings, model, clips, crops, text=text)
    runners = [
        load_runner(settings, spec.model_copy(update={"merging": rule}))
        for rule in rules or (spec.merging,)
    ]
    runner = runners[0]
    modality = runner.model.transform.modality
    data = open_dataset(folder, limit, modality)
    if r is None:
        r = IMAGE_SCHEDULES if modality is Modality.IMAGE else tuple(map(str, runner.model.levels))
    schedules = parse_schedules(runner, r)
    targets = class_indices(data, runner.model.labels)
    files = _FILES[modality]
    conditions = model_identity(spec)
    if spec.text is not None:
        conditions["text"] = next(iter(spec.label_files))
    with log_step(log, f"evaluating {len(data):,} {files} under {len(schedules)} schedules"):
        rows = measure(runners, schedules, data, targets, batch)
    for each in runners:
        merging = each.model.spec.merging
        print_table(each, data, [row for row in rows if row.merging == merging])
    conditions |= {
        "data": data.name,
        files: len(data),
        "batch": batch,
        **run_conditions(runner),
    }
    if isinstance(runner.model.transform, VideoTransform):
        conditions["clips"] = runner.model.transform.clips
        conditions["crops"] = runner.model.transform.crops
    return rows, conditions


def class_indices(data: LabelledData, labels: Sequence[str]) -> list[int]:
    """Return the index of the model's label for each class of ``data``.

    Classes and labels are matched by name, or else by position if there are equally many.

    Raises:
        ConfigError: neither is possible.
    """
    index_of = {label.casefold(): index for index, label in enumerate(labels)}
    names = [name.casefold() for name in data.classes]
    if all(name in index_of for name in names):
        return [index_of[name] for name in names]
    if len(names) == len(labels):
        return list(range(len(labels)))
    missing = next(name for name in data.classes if name.casefold() not in index_of)
    raise ConfigError(
        f"{missing!r} of {data.name} is not a label of the model; name the folders as in its label"
        " file, or have as many"
    )


def measure(
    runners: Sequence[Runner],
    schedules: Sequence[Schedule],
    data: LabelledData,
    targets: Sequence[int],
    batch: int,
) -> list[ProfileRow]:
    """Run every batch under every schedule, one after the other.

    Each batch begins with another schedule (see `server.commands.speeds`). The first of
    ``schedules`` by the first of ``runners`` is the baseline of the speed-ups. The probabilities of
    a file's windows are averaged.

    Args:
        runners: of one model by several rules.
        targets: the model's class for each class of ``data``; see `class_indices`.
    """
    measurements = [_Measurement(runner, schedule) for runner in runners for schedule in schedules]
    for measurement in measurements:
        measurement.runner.seconds([measurement.schedule] * batch)  # warm up
    transform = runners[0].model.transform
    with make_progress() as progress:
        task = progress.add_task(_FILES[transform.modality], total=len(data))
        for number, part in enumerate(batches(transform, data, targets, batch)):
            for measurement in in_turn(measurements, number):
                _measure_batch(part, measurement)
            progress.update(task, completed=int(part.items[-1]) + 1)
    baseline = measurements[0]
    return [_row(each, baseline, len(data)) for each in measurements]


def _measure_batch(part: LabelledBatch, measurement: _Measurement) -> None:
    """Run one batch under the schedule of ``measurement``, and add its time and its scores."""
    runner = measurement.runner
    count = len(part.inputs)
    started = time.perf_counter()
    logits = runner.logits(part.inputs, [measurement.schedule] * count).cpu()
    seconds = time.perf_counter() - started
    measurement.batch_sizes.append(count)
    measurement.seconds.append(seconds / count)
    scores = logits
    if runner.model.transform.modality is not Modality.IMAGE:
        scores = ACTIVATIONS[runner.model.activation](logits)
    measurement.means.add(part.items, part.labels, scores.numpy())
    if _knows_certainty(runner):
        classes, margins = best_and_margin(logits)
        measurement.classes.append(classes)
        measurement.margins.append(margins)
        measurement.labels.append(part.labels)


def _knows_certainty(runner: Runner) -> bool:
    """Return whether the margin between two classes says how certain the model is of an image."""
    model = runner.model
    is_image = model.transform.modality is Modality.IMAGE
    return is_image and model.activation == "softmax" and len(model.labels) > 1


def _row(measurement: _Measurement, baseline: _Measurement, files: int) -> ProfileRow:
    runner = measurement.runner
    tokens = runner.tokens(measurement.schedule)
    cost = runner.model.network.cost()
    sizes = measurement.batch_sizes
    speedup = np.median(speedups(sizes, baseline.seconds, measurement.seconds))
    hits = measurement.means.hits()
    low, high = wilson_interval(hits, files)
    row = ProfileRow(
        r=str(measurement.schedule),
        accuracy=round(100 * hits / files, 3),
        tokens=tokens[-1],
        relative_flops=round(cost.relative(tokens), 4),
        images_per_s=round(images_per_second(sizes, measurement.seconds), 1),
        speedup=round(float(speedup), 3),
        accuracy_low=round(100 * low, 3),
        accuracy_high=round(100 * high, 3),
        merging=runner.model.spec.merging,
        prop_attn=runner.model.spec.prop_attn,
    )
    if not measurement.classes:
        return row
    if measurement.schedule == baseline.schedule:
        return with_exact_agreement(row)
    return _with_cascade(row, measurement, baseline)


def _with_cascade(row: ProfileRow, measured: _Measurement, baseline: _Measurement) -> ProfileRow:
    """Return ``row`` with its agreement with r=0, and with what second passes at r=0 give."""
    classes = np.concatenate(measured.classes)
    exact = np.concatenate(baseline.classes)
    margins = np.concatenate(measured.margins)
    agrees = classes == exact
    row = with_margin(with_agreement(row, agrees), margins, agrees)
    assert row.margin is not None
    final = np.where(margins < row.margin, exact, classes)
    hits = final == np.concatenate(measured.labels)
    return replace(row, cascade_accuracy=round(100 * float(hits.mean()), 3))


def print_table(runner: Runner, data: LabelledData, rows: Sequence[ProfileRow]) -> None:
    """Print the rows as a table."""
    modality = runner.model.transform.modality
    spec = runner.model.spec
    files = f"{len(data):,} {_FILES[modality]} of {data.name}"
    title = f"{spec.name} by {spec.merging} on {files}, {runner.device}"
    speed = f"{_INPUTS[modality]}/s"
    table = Table(
        "r", "accuracy %", "95 % interval", "tokens", "FLOPs", speed, "speed-up", title=title
    )
    for row in rows:
        assert row.accuracy is not None
        table.add_row(
            row.r,
            f"{row.accuracy:.2f}",
            f"{row.accuracy_low:.2f} to {row.accuracy_high:.2f}",
            str(row.tokens),
            f"{row.relative_flops:.1%}",
            f"{row.images_per_s:.0f}",
            f"{row.speedup:.2f}x",
        )
    table_console().print(table)
    print_cascades(rows)


def print_cascades(rows: Sequence[ProfileRow]) -> None:
    """Print what a second pass at r=0 costs and gains, for the rows that have a margin."""
    cascades = [row for row in rows if row.margin is not None]
    if not cascades:
        return
    table = Table(
        "r",
        "agreement with r=0, %",
        "margin",
        "second passes, %",
        "agreement then, at least, %",
        "accuracy then, %",
        "speed-up then",
        title="Agreement of the best class with r=0: after one pass, then with confidence=auto",
    )
    for row in cascades:
        table.add_row(
            row.r,
            f"{row.agreement:.2f}",
            f"{row.margin:.3f}",
            f"{row.second_passes:.1f}",
            f"{row.margin_agreement:.2f}",
            "" if row.cascade_accuracy is None else f"{row.cascade_accuracy:.2f}",
            f"{cascade_speedup(row):.2f}x",
        )
    table_console().print(table)
