"""``tome-serve evaluate``: accuracy and speed for each schedule, over labelled images."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from server.catalog.profiles import ProfileRow
from server.commands.datasets import LabelledImages, read_pixels
from server.commands.offline import load_runner, parse_schedule, pick_model
from server.engine.execution.runner import Runner
from server.errors import ConfigError
from server.logs import log_step
from server.settings import ModelSettings
from tome_core.schedule import Schedule

log = logging.getLogger("tome.server")


@dataclass
class _Measurement:
    """What was measured under one schedule.

    Attributes:
        hits: images whose best class was right.
        seconds_per_image: one value for each timed batch.
    """

    schedule: Schedule
    hits: int = 0
    seconds_per_image: list[float] = field(default_factory=list)


def evaluate(
    settings: ModelSettings,
    data: LabelledImages,
    r: Sequence[str],
    model: str,
    batch: int,
) -> tuple[list[ProfileRow], dict[str, object]]:
    """Measure and print the table; return its rows and the conditions of the measurement.

    Raises:
        ConfigError: a class of ``data`` is not a label of the model, or a schedule does not fit it.
    """
    runner = load_runner(settings, pick_model(settings, model))
    texts = dict.fromkeys(["0", *r])  # each once; r=0 first, the baseline of speed-ups
    schedules = [parse_schedule(runner, text) for text in texts]
    targets = class_indices(data, runner.model.labels)
    with log_step(log, f"evaluating {len(data):,} images under {len(schedules)} schedules"):
        rows = measure(runner, schedules, data, targets, batch)
    print_table(runner, data, rows)
    conditions = {
        "model": runner.model.spec.name,
        "data": data.name,
        "images": len(data),
        "batch": batch,
        "device": str(runner.device),
        "dtype": runner.dtype,
        "threads": torch.get_num_threads(),
    }
    return rows, conditions


def class_indices(data: LabelledImages, labels: Sequence[str]) -> list[int]:
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
    runner: Runner,
    schedules: Sequence[Schedule],
    data: LabelledImages,
    targets: Sequence[int],
    batch: int,
) -> list[ProfileRow]:
    """Run every batch under every schedule, one after the other.

    A change of the machine's speed then affects all schedules alike. The first schedule is the
    baseline of the speed-ups.

    Args:
        targets: the model's class for each class of ``data``; see `class_indices`.
    """
    measurements = [_Measurement(schedule) for schedule in schedules]
    for schedule in schedules:
        runner.seconds([schedule] * batch)  # warm up
    with _progress() as progress:
        task = progress.add_task("images", total=len(data))
        for pixels, labels in batches(runner, data, targets, batch):
            # A last batch that is not full runs at another speed.
            is_timed = len(pixels) == batch or len(data) < batch
            for measurement in measurements:
                started = time.perf_counter()
                classes = _predict(runner, pixels, measurement.schedule)
                if is_timed:
                    seconds = time.perf_counter() - started
                    measurement.seconds_per_image.append(seconds / len(pixels))
                measurement.hits += int((classes == labels).sum())
            progress.advance(task, len(pixels))
    baseline = measurements[0]
    return [_row(runner, each, baseline, len(data)) for each in measurements]


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _predict(
    runner: Runner,
    pixels: npt.NDArray[np.uint8],
    schedule: Schedule,
) -> npt.NDArray[np.int64]:
    """Return the best class of each image, ``(B,)``."""
    logits = runner.logits(pixels, [schedule] * len(pixels))
    return logits.argmax(dim=-1).cpu().numpy()


def _row(
    runner: Runner,
    measurement: _Measurement,
    baseline: _Measurement,
    images: int,
) -> ProfileRow:
    tokens = runner.tokens(measurement.schedule)
    cost = runner.model.network.cost()
    seconds = measurement.seconds_per_image
    pairs = zip(baseline.seconds_per_image, seconds, strict=True)
    speedups = [before / after for before, after in pairs]
    return ProfileRow(
        r=str(measurement.schedule),
        accuracy=round(100 * measurement.hits / images, 3),
        tokens=tokens[-1],
        relative_flops=round(cost.relative(tokens), 4),
        images_per_s=round(1 / statistics.median(seconds), 1),
        speedup=round(statistics.median(speedups), 3),
    )


def batches(
    runner: Runner,
    data: LabelledImages,
    targets: Sequence[int],
    size: int,
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Yield pixels ``uint8 (B, C, H, W)`` and the model's classes ``int64 (B,)``.

    Images pass through the transform that serving uses.

    Raises:
        ConfigError: an image cannot be read or decoded.
    """
    transform = runner.model.transform
    pixels = []
    labels = []
    for source, label in data.items():
        pixels.append(read_pixels(source, transform))
        labels.append(targets[label])
        if len(pixels) == size:
            yield np.stack(pixels), np.array(labels)
            pixels = []
            labels = []
    if pixels:
        yield np.stack(pixels), np.array(labels)


def print_table(runner: Runner, data: LabelledImages, rows: Sequence[ProfileRow]) -> None:
    """Print the rows as a table."""
    title = f"{runner.model.spec.name} on {len(data):,} images of {data.name}, {runner.device}"
    table = Table("r", "accuracy %", "tokens", "FLOPs", "images/s", "speed-up", title=title)
    for row in rows:
        table.add_row(
            row.r,
            f"{row.accuracy:.2f}",
            str(row.tokens),
            f"{row.relative_flops:.1%}",
            f"{row.images_per_s:.0f}",
            f"{row.speedup:.2f}x",
        )
    Console().print(table)
