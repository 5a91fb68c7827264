"""Accuracy and speed of a model for each schedule, over labelled images: ``tome-serve evaluate``."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from server.datasets import LabelledImages
from server.decode import to_pixels
from server.engine.runner import Runner
from server.errors import ConfigError
from server.offline import load_runner, parse_schedule, pick_model
from server.settings import ModelSettings
from tome_core.schedule import Schedule


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        accuracy: top-1, in percent.
        images_per_s: median over the batches, forward pass and pixels' way to the device included.
        speedup: the median over the batches of the time at r=0 by the time at this schedule.
    """

    r: str
    accuracy: float
    tokens: int
    relative_flops: float
    images_per_s: float
    speedup: float


def evaluate(
    settings: ModelSettings, data: LabelledImages, r: Sequence[str], model: str, batch: int, profile: Path | None
) -> int:
    """Measure, print the table, and write it to ``profile`` if that is given.

    Raises:
        ConfigError: a class of ``data`` is no label of the model, or a schedule does not fit it.
    """
    runner = load_runner(settings, pick_model(settings, model))
    schedules = [parse_schedule(runner, text) for text in dict.fromkeys(["0", *r])]
    targets = class_indices(data, runner.model.labels)
    rows = measure(runner, schedules, data, targets, batch)
    print_table(runner, data, rows)
    if profile is not None:
        document = {
            "model": runner.model.spec.name,
            "data": data.name,
            "images": len(data),
            "device": str(runner.device),
        }
        profile.write_text(json.dumps(document | {"levels": [asdict(row) for row in rows]}, indent=1) + "\n")
        print(f"wrote {profile}")
    return 0


def class_indices(data: LabelledImages, labels: Sequence[str]) -> list[int]:
    """The model's class for each class of ``data``, found by its name, else by its number among as many.

    Raises:
        ConfigError: neither fits.
    """
    known = {label.casefold(): index for index, label in enumerate(labels)}
    if all(name.casefold() in known for name in data.classes):
        return [known[name.casefold()] for name in data.classes]
    if len(data.classes) == len(labels):
        return list(range(len(labels)))
    missing = next(name for name in data.classes if name.casefold() not in known)
    raise ConfigError(
        f"{missing!r} of {data.name} is no label of the model; name the folders as in its label file, or have as many"
    )


def measure(
    runner: Runner, schedules: Sequence[Schedule], data: LabelledImages, targets: Sequence[int], batch: int
) -> list[Row]:
    """Run every batch under every schedule in turn, so that a change of the machine's speed meets all alike."""
    hits = [0] * len(schedules)
    seconds: list[list[float]] = [[] for _ in schedules]
    for schedule in schedules:
        runner.seconds(batch, schedule)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("images", total=len(data))
        for pixels, labels in batches(runner, data, targets, batch):
            for index, schedule in enumerate(schedules):
                started = time.perf_counter()
                classes = runner.logits(pixels, [schedule] * len(pixels)).argmax(dim=-1).cpu().numpy()
                if len(pixels) == batch or len(data) < batch:
                    seconds[index].append((time.perf_counter() - started) / len(pixels))
                hits[index] += int((classes == labels).sum())
            progress.advance(task, len(pixels))
    cost = runner.model.network.cost()
    return [
        Row(
            r=str(schedule),
            accuracy=round(100 * hits[index] / len(data), 3),
            tokens=runner.tokens(schedule)[-1],
            relative_flops=round(cost.relative(runner.tokens(schedule)), 4),
            images_per_s=round(1 / statistics.median(seconds[index]), 1),
            speedup=round(statistics.median(a / b for a, b in zip(seconds[0], seconds[index], strict=True)), 3),
        )
        for index, schedule in enumerate(schedules)
    ]


def batches(
    runner: Runner, data: LabelledImages, targets: Sequence[int], size: int
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Pixels ``uint8 (B, C, H, W)`` and the model's classes ``int64 (B,)``, through the transform that serving uses."""
    transform = runner.model.transform
    pixels, labels = [], []
    for image, label in data.items():
        pixels.append(to_pixels(image, transform))
        labels.append(targets[label])
        if len(pixels) == size:
            yield np.stack(pixels), np.array(labels)
            pixels, labels = [], []
    if pixels:
        yield np.stack(pixels), np.array(labels)


def print_table(runner: Runner, data: LabelledImages, rows: Sequence[Row]) -> None:
    """The table, for people."""
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
