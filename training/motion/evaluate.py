"""Accuracy and speed by ``r`` on held-out clips: `python -m training.motion.evaluate`.

The bundled model and its twin, which was trained without merging, classify the same clips by the
server's own kernels. Each batch runs under all schedules of both models before the next, and begins
with another schedule, so that a change of the machine's speed affects all alike. What a batch
answered is a line of a file; an interrupted evaluation goes on after the last one. The table is
Markdown, in percent, with 95% intervals (Wilson) and with standard errors, in pairs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from server.catalog.entries import BUNDLED_VIDEO, read_catalog
from server.commands.offline import load_runner, parse_schedule
from server.engine.execution.runner import Runner
from server.settings import ModelSettings
from training.motion.clips import PORTION, Clips, garments, held_out_portion
from training.tables import accuracy, loss_of, markdown

TWIN = Path("training/motion-twin.toml")
RESULTS = Path("training/runs/motion/evaluation.jsonl")
CLIPS = 6000
LEVELS = ("0", "24", "40", "28:-1", "40:-1", "44:-1")
BATCH = 25  # clips; a divisor of PORTION


@dataclass(frozen=True)
class Answers:
    """What one model answered under one schedule.

    Attributes:
        classes: of each clip, ``(clips,)``.
        seconds: of each batch.
    """

    classes: Tensor
    seconds: list[float]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.motion.evaluate", description=__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS, help=f"default: {CLIPS:,}")
    parser.add_argument("--levels", nargs="+", default=LEVELS, metavar="R", help="schedules")
    parser.add_argument(
        "--config",
        type=Path,
        nargs="+",
        default=(BUNDLED_VIDEO, TWIN),
        help="files whose first model is evaluated; default: the bundled model's and its twin's",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"default: {RESULTS}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=0, help="default: one a core")
    args = parser.parse_args()
    settings = ModelSettings(threads=args.threads, dtype=args.dtype, log_level="warning")
    catalogs = [read_catalog(path, (), profiles=False) for path in args.config]
    runners = [load_runner(settings, catalog[0]) for catalog in catalogs]
    levels = list(dict.fromkeys(["0", *args.levels]))  # r=0 first, the baseline
    batches = evaluate(runners, levels, args.clips, args.results)
    print(f"\n{args.clips:,} held-out clips, {args.dtype}, {torch.get_num_threads()} threads\n")
    print(table(runners, levels, batches))


def evaluate(
    runners: Sequence[Runner], levels: Sequence[str], count: int, results: Path
) -> list[dict[str, Any]]:
    """Classify ``count`` held-out clips, those of which ``results`` has no answers.

    Returns:
        For each batch ``labels``, and ``answers[model][level]`` with ``classes`` and ``seconds``.

    Raises:
        SystemExit: ``results`` are of other models, schedules or conditions.
    """
    conditions = {
        "weights": {runner.model.spec.name: digest(runner) for runner in runners},
        "levels": list(levels),
        "dtype": runners[0].dtype,
        "threads": torch.get_num_threads(),
        "clips": count,
    }
    done = resume(results, conditions)
    if BATCH * len(done) < count:
        warm_up(runners, levels)
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with results.open("a") as file, Progress(*columns) as progress:
        task = progress.add_task("", total=count, completed=min(count, BATCH * len(done)))
        for made in batches_from(BATCH * len(done), count):
            answers = answer(runners, levels, made, first=len(done))
            record = {"labels": made.labels.tolist(), "answers": answers}
            file.write(json.dumps(record) + "\n")
            file.flush()
            done.append(record)
            progress.advance(task, len(made.labels))
    return done


def warm_up(runners: Sequence[Runner], levels: Sequence[str]) -> None:
    """Run a batch of each model under each schedule, of which the time does not count."""
    for level, runner in product(levels, runners):
        runner.seconds([parse_schedule(runner, level)] * BATCH)


def digest(runner: Runner) -> str:
    """Return the SHA-256 of the weights' file."""
    checkpoint = runner.model.spec.checkpoint
    assert checkpoint is not None
    return hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def resume(results: Path, conditions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the batches in the file ``results``, which begins with ``conditions``; or begin it.

    Raises:
        SystemExit: its conditions are others.
    """
    lines = results.read_text().splitlines(keepends=True) if results.exists() else []
    whole = [line for line in lines if line.endswith("\n")]  # an interrupted write leaves a part
    if not whole:
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(conditions) + "\n")
        return []
    found, *batches = map(json.loads, whole)
    if found != conditions:
        raise SystemExit(
            f"{results} is of another evaluation; remove it, or name another file with --results"
        )
    results.write_text("".join(whole))
    return batches


def batches_from(start: int, count: int) -> Iterator[Clips]:
    """Yield the held-out clips from number ``start`` to ``count - 1``, in batches."""
    pictures = garments("test")
    for portion in range(start - start % PORTION, count, PORTION):
        made = held_out_portion(pictures, portion, min(PORTION, count - portion))
        for place in range(max(0, start - portion), len(made.labels), BATCH):
            chosen = slice(place, place + BATCH)
            yield Clips(made.pixels[chosen], made.labels[chosen], made.cover[chosen])


def answer(
    runners: Sequence[Runner], levels: Sequence[str], made: Clips, first: int
) -> dict[str, dict[str, Any]]:
    """Return what the models answer under all schedules.

    Args:
        first: which of the models and schedules is the first to run, modulo their number.
    """
    count = len(made.labels)
    pixels = made.pixels.numpy()
    turns = list(product(levels, runners))
    first %= len(turns)
    answers: dict[str, dict[str, Any]] = {runner.model.spec.name: {} for runner in runners}
    for level, runner in turns[first:] + turns[:first]:
        schedules = [parse_schedule(runner, level)] * count
        started = time.perf_counter()
        classes = runner.logits(pixels, schedules).argmax(dim=-1).tolist()
        seconds = time.perf_counter() - started
        answers[runner.model.spec.name][level] = {"classes": classes, "seconds": seconds}
    return answers


def collect(batches: Sequence[Mapping[str, Any]], model: str, level: str) -> Answers:
    """Return what ``model`` answered under the schedule ``level`` in all batches."""
    found = [batch["answers"][model][level] for batch in batches]
    classes = torch.tensor([each for batch in found for each in batch["classes"]])
    return Answers(classes, [batch["seconds"] for batch in found])


def table(
    runners: Sequence[Runner], levels: Sequence[str], batches: Sequence[Mapping[str, Any]]
) -> str:
    """Return a row for each schedule: the speed of the first model, then the accuracy of each."""
    header = ["`r`", "tokens left", "FLOPs", "clips/s", "speed-up"]
    for runner in runners:
        header += [f"{runner.model.spec.name}: accuracy, %", "loss", "changed"]
    labels = torch.tensor([label for batch in batches for label in batch["labels"]])
    first = runners[0].model
    plain = collect(batches, first.spec.name, levels[0])
    rows = []
    for level in levels:
        tokens = runners[0].tokens(parse_schedule(runners[0], level))
        merged = collect(batches, first.spec.name, level)
        row = [level, str(tokens[-1]), f"{first.network.cost().relative(tokens):.0%}"]
        row += [f"{len(labels) / sum(merged.seconds):.0f}", f"{speed_up(plain, merged):.2f}x"]
        for runner in runners:
            name = runner.model.spec.name
            row += accuracy_cells(
                collect(batches, name, levels[0]).classes,
                collect(batches, name, level).classes,
                labels,
            )
        rows.append(row)
    return markdown(header, rows)


def speed_up(before: Answers, after: Answers) -> float:
    """Return the median over the batches of how many times as fast ``after`` is."""
    pairs = zip(before.seconds, after.seconds, strict=True)
    return statistics.median(slow / fast for slow, fast in pairs)


def accuracy_cells(plain: Tensor, merged: Tensor, labels: Tensor) -> list[str]:
    """Return the accuracy, what is lost of it, and the share of clips whose class changes.

    Args:
        plain, merged: classes ``(clips,)`` without merging and with it.
    """
    right = merged == labels
    changed = (plain != merged).double().mean().item()
    return [accuracy(right), loss_of(plain == labels, right), f"{100 * changed:.1f}"]


if __name__ == "__main__":
    main()
