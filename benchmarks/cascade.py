"""`python -m benchmarks.cascade`: the class of r=0 in less time, by second passes where needed.

For each r the margin is found on the first images of a data set, as `tome-serve evaluate` finds it,
and the cascade is measured on the others: agreement with r=0, accuracy, and time. Then a real
server takes those others from 32 clients, in turns at r=0, at r, and at r with that confidence.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import servers
from benchmarks.results import about
from server.catalog.entries import BUNDLED
from server.commands.agreement import Margin, best_and_margin, choose_margin
from server.commands.datasets import load_fashion_mnist
from server.commands.offline import load_runner, pick_model
from server.engine.device.placement import pick_device
from server.engine.execution.runner import Runner
from server.errors import ConfigError
from server.hardware import usable_cores
from server.settings import ModelSettings
from tome_core.schedule import Schedule
from tome_load.run import run_load
from tome_load.spec import LoadSpec
from tome_load.uploads import Upload

PORT = 8128
EXACT = Schedule.constant(0)
SENT_IMAGES = 1000  # different ones, of those that a server takes
WARM_SECONDS = 2.0


@dataclass(frozen=True)
class Answers:
    """What the model says of images under one schedule.

    Attributes:
        classes: the best ones, ``int64 (N,)``.
        margins: between the two best probabilities, ``float64 (N,)``.
    """

    classes: npt.NDArray[np.int64]
    margins: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cascade:
    """One r with the margin that was found for it, measured on other images.

    Attributes:
        agreement, plain_agreement: the share of images with the class of r=0, with second passes
            and without.
        accuracy, exact_accuracy: the same of the true class, and that at r=0.
        time, plain_time: as a share of the time at r=0: the median over the turns.
    """

    r: str
    margin: Margin
    second_passes: float
    agreement: float
    plain_agreement: float
    accuracy: float
    exact_accuracy: float
    time: float
    plain_time: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit code."""
    args = parse(arguments)
    console = Console(width=None if Console().is_terminal else 160)
    settings = ModelSettings(config=args.config, threads=args.threads, dtype=args.dtype)
    try:
        runner = load_runner(settings, pick_model(settings, args.model))
        images, labels = load_fashion_mnist("test")
    except ConfigError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    cores = args.threads or usable_cores()
    lines = [f"{key}: {value}" for key, value in about_run(cores).items()]
    console.print(*lines, sep="; ")
    inputs = images[:, None].copy()  # PyTorch takes no arrays that cannot be written
    exact = run(runner, inputs, EXACT, args.batch)
    found = []
    for r in args.r.split():
        found.append(measure(runner, inputs, labels, exact, Schedule.parse(r), args))
        console.print(f"r={r}: {found[-1].time:.1%} of the time at r=0", style="dim")
    console.print(Markdown(table(found)))
    if args.seconds:
        best = min(found, key=lambda one: one.time)
        console.print(Markdown(under_load(images[args.found_on :], best, args, console)))
    return 0


def about_run(threads: int) -> dict[str, str]:
    """Where, when, and how this is measured."""
    return about("benchmarks.cascade", pick_device("auto"), threads)


def measure(
    runner: Runner,
    inputs: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    exact: Answers,
    schedule: Schedule,
    args: argparse.Namespace,
) -> Cascade:
    """Find the margin of ``schedule`` on the first images, and measure it on the others.

    Args:
        inputs: ``(N, C, H, W)``.
        exact: the answers for them at r=0.
    """
    merged = run(runner, inputs, schedule, args.batch)
    agrees = merged.classes == exact.classes
    first = slice(args.found_on)
    chosen = choose_margin(merged.margins[first], agrees[first])
    others = slice(args.found_on, None)
    again = merged.margins < chosen.margin
    final = np.where(again, exact.classes, merged.classes)
    shares = measure_time(runner, inputs[others], again[others], schedule, args)
    return Cascade(
        r=str(schedule),
        margin=chosen,
        second_passes=float(again[others].mean()),
        agreement=float((final == exact.classes)[others].mean()),
        plain_agreement=float(agrees[others].mean()),
        accuracy=float((final == labels)[others].mean()),
        exact_accuracy=float((exact.classes == labels)[others].mean()),
        time=statistics.median(cascade for cascade, _ in shares),
        plain_time=statistics.median(plain for _, plain in shares),
    )


def measure_time(
    runner: Runner,
    inputs: npt.NDArray[np.uint8],
    again: npt.NDArray[np.bool_],
    schedule: Schedule,
    args: argparse.Namespace,
) -> list[tuple[float, float]]:
    """Return the time with second passes and without, of each turn, as shares of that at r=0.

    The three parts begin each turn in another order.

    Args:
        again: which of ``inputs`` run a second time.
    """
    shares = []
    for turn in range(args.turns):
        part = inputs[turn :: args.turns][: args.timed]
        second = part[again[turn :: args.turns][: args.timed]]
        runs = [(part, EXACT), (part, schedule), (second, EXACT)]
        first = turn % len(runs)
        taken = [0.0] * len(runs)
        for index in [*range(first, len(runs)), *range(first)]:
            images, of_run = runs[index]
            taken[index] = seconds(runner, images, of_run, args.batch)
        baseline, plain, more = taken
        shares.append(((plain + more) / baseline, plain / baseline))
    return shares


def run(runner: Runner, inputs: npt.NDArray[np.uint8], schedule: Schedule, batch: int) -> Answers:
    """Return the answers for ``inputs (N, C, H, W)``."""
    classes = []
    margins = []
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        best, margin = best_and_margin(runner.logits(part, [schedule] * len(part)))
        classes.append(best)
        margins.append(margin)
    return Answers(np.concatenate(classes), np.concatenate(margins))


def seconds(runner: Runner, inputs: npt.NDArray[np.uint8], schedule: Schedule, batch: int) -> float:
    """Return how long the forward passes of ``inputs`` take, in batches."""
    started = time.perf_counter()
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        runner.logits(part, [schedule] * len(part)).cpu()
    return time.perf_counter() - started


def table(found: Sequence[Cascade]) -> str:
    """Return the cascades as Markdown."""
    rows = [
        "| r | agrees | margin | second passes | agrees with them | accuracy (r=0) |"
        " time, % of r=0 | with second passes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows += [
        f"| {one.r} | {one.plain_agreement:.2%} | {one.margin.margin:.3f} |"
        f" {one.second_passes:.1%} | {one.agreement:.2%} |"
        f" {one.accuracy:.2%} ({one.exact_accuracy:.2%}) | {one.plain_time:.1%} |"
        f" {one.time:.1%} |"
        for one in found
    ]
    return "\n".join(rows)


def under_load(
    images: npt.NDArray[np.uint8], cascade: Cascade, args: argparse.Namespace, console: Console
) -> str:
    """Return the images/s of a server at r=0, at r, and with the cascade, as Markdown."""
    uploads = tuple(
        Upload(f"{index}.png", png(each)) for index, each in enumerate(images[:SENT_IMAGES])
    )
    loads = {
        "r=0": ("0", ""),
        f"r={cascade.r}": (cascade.r, ""),
        f"r={cascade.r}, confidence={cascade.margin.margin:.6f}": (
            cascade.r,
            f"{cascade.margin.margin:.17f}",
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in loads}
    config = args.config or BUNDLED
    with servers.ours(config, PORT, threads=args.threads, dtype=args.dtype) as address:
        for number in range(args.rounds):
            first = number % len(loads)
            turns = [*loads][first:] + [*loads][:first]
            for name in turns:
                r, confidence = loads[name]
                spec = LoadSpec(
                    url=address,
                    uploads=uploads,
                    connections=args.connections,
                    duration=args.seconds,
                    warmup=WARM_SECONDS,
                    r=(r,),
                    model=args.model,
                    confidence=confidence,
                )
                report = asyncio.run(run_load(spec))
                if report.answered < report.requests:
                    raise SystemExit(
                        f"{name}: only {report.answered} of {report.requests} answered"
                    )
                rate = report.answered_per_s
                console.print(f"round {number + 1}, {name}: {rate:.0f} images/s", style="dim")
                rates[name].append(rate)
    baseline = rates["r=0"]
    rows = ["| load | images/s | of r=0 | lowest | highest |", "| --- | --- | --- | --- | --- |"]
    for name, values in rates.items():
        ratios = [one / plain for one, plain in zip(values, baseline, strict=True)]
        rows.append(
            f"| {name} | {statistics.median(values):.0f} | {statistics.median(ratios):.2f}x |"
            f" {min(ratios):.2f}x | {max(ratios):.2f}x |"
        )
    return "\n".join(rows)


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """Return ``image (H, W)`` as a file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cascade", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", type=Path, help="models; default: the bundled one")
    parser.add_argument("--model", default="", help="default: the first")
    parser.add_argument("--r", default="8 12 16 20", help="of the first passes")
    parser.add_argument("--found-on", type=int, default=3000, help="images that choose the margin")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--turns", type=int, default=7, help="that are timed")
    parser.add_argument("--timed", type=int, default=512, help="images of a turn")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9, help="of the server")
    parser.add_argument(
        "--seconds", type=float, default=8, help="of each load of the server; 0: no server"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
