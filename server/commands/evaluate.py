"""Accuracy and speed of a model for each schedule, over labelled images: ``tome-serve evaluate``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from server.catalog.profiles import Row
from server.commands.datasets import LabelledImages
from server.commands.offline import load_runner, parse_schedule, pick_model
from server.engine.execution.runner import Runner
from server.errors import ConfigError
from server.imaging.decode import to_pixels
from server.settings import ModelSettings
from tome_core.schedule import Schedule


def evaluate(
    settings: ModelSettings, data: LabelledImages, r: Sequence[str], model: str, batch: int
) -> tuple[list[Row], dict[str, object]]:
    """Measure and print the table; returns its rows, and what they were measured on.

    Raises:
        ConfigError: a class of ``data`` is no label of the model, or a schedule does not fit it.
    """
    runner = load_runner(settings, pick_model(settings, model))
    schedules = [parse_schedule(runner, text) for text in dict.fromkeys(["0", *r])]
    rows = measure(runner, schedules, data, class_indices(data, runner.model.labels), batch)
    print_table(runner, data, rows)
    about = {
        "model": runner.model.spec.name,
        "data": data.name,
        "images": len(data),
        "batch": batch,
    }
    return rows, about | {
        "device": str(runner.device),
        "dtype": runner.dtype,
        "threads": torch.get_num_threads(),
    }


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
        f"{missing!r} of {data.name} is no label of the model; name the folders as in its label"
        " file, or have as many"
    )


def measure(
    runner: Runner,
    schedules: Sequence[Schedule],
    data: LabelledImages,
    targets: Sequence[int],
    batch: int,
) -> list[Row]:
    """Run every batch under every schedule in turn, so that a change of the machine's speed meets all alike."""
    hits = [0] * len(schedules)
    seconds: list[list[float]] = [[] for _ in schedules]
    for schedule in schedules:
        runner.seconds([schedule] * batch)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("images", total=len(data))
        for pixels, labels in batches(runner, data, targets, batch):
            for index, schedule in enumerate(schedules):
                started = time.perf_counter()
                classes = (
                    runner.logits(pixels, [schedule] * len(pixels)).argmax(dim=-1).cpu().numpy()
                )
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
            speedup=round(
                statistics.median(a / b for a, b in zip(seconds[0], seconds[index], strict=True)), 3
            ),
        )
        for index, schedule in enumerate(schedules)
    ]


def batches(
    runner: Runner, data: LabelledImages, targets: Sequence[int], size: int
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
    """Pixels ``uint8 (B, C, H, W)`` and the model's classes ``int64 (B,)``, through the transform that serving uses."""
    transform = runner.model.transform
    pixels = []
    labels = []
    for image, label in data.items():
        pixels.append(to_pixels(image, transform))
        labels.append(targets[label])
        if len(pixels) == size:
            yield np.stack(pixels), np.array(labels)
            pixels = []
            labels = []
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
