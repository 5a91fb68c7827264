"""How much faster merging makes models of the literature, beside what their FLOPs allow.

Models with random weights run as the engine runs them, from inputs in host memory to the best
classes, each in the dtype that `auto` picks on this machine. r=0 and the other schedules take turns
in one run; times are medians, and a speed-up is the median of those of the rounds. Its bound is 1
over the share of the FLOPs that merging leaves.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import tome_core
from benchmarks.measure import Plan, alternate
from benchmarks.results import about
from server.engine.device.dtype_choice import choose_dtype, dtype_name
from server.engine.device.forward import NUMPY_DTYPES, Forward
from server.engine.device.pinned_memory import InputArray
from server.engine.device.placement import (
    configure_pytorch,
    cpu_dtypes,
    pick_device,
    pick_dtype,
    set_threads,
)
from tome_core.schedule import Schedule

TABLE_WIDTH = 120  # columns, where the output is not a terminal
TOP = 5
PLAN = Plan(rounds=9, turn_seconds=0.5, budget_seconds=240)
QUICK = Plan(rounds=3, turn_seconds=0.0, budget_seconds=30)
QUICK_DEPTH = 2
UNMERGED = Schedule.constant(0)


@dataclass(frozen=True)
class Level:
    """A schedule of a model.

    Attributes:
        schedule: its text.
        bar: the speed-up that it must reach; 0 if none is required.
        published: the speed-up in the literature.
    """

    schedule: str
    bar: float = 0.0
    published: str = ""

    @property
    def parsed(self) -> Schedule:
        """The schedule."""
        return Schedule.parse(self.schedule)


@dataclass(frozen=True)
class Model:
    """A model of the literature.

    Attributes:
        timm: its architecture.
        arguments: of timm.
        levels: what is compared with r=0.
        activation: of its scores.
        input_dtype: uint8, normalised by ``mean`` and ``std``, or float32.
    """

    name: str
    timm: str
    levels: tuple[Level, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    activation: str = "softmax"
    input_dtype: torch.dtype = torch.uint8
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        """Its name on the command line."""
        return self.name.lower().replace(" vit-", "-").replace(" ", "-")

    @property
    def schedules(self) -> list[Schedule]:
        """All that run, r=0 first."""
        return [UNMERGED, *(level.parsed for level in self.levels)]


@dataclass(frozen=True)
class Row:
    """What was measured of one level; tokens and seconds, of a batch, at r=0 and there."""

    model: Model
    level: Level
    dtype: str
    batch: int
    tokens: tuple[int, int]
    seconds: tuple[float, float]
    speedup: float
    bound: float

    @property
    def passes(self) -> bool:
        """Whether the speed-up reaches the bar."""
        return self.speedup >= self.level.bar


def measure(
    model: Model,
    device: torch.device,
    dtype_setting: str,
    plan: Plan,
    batches: Sequence[int],
    depth: int | None = None,
    on_turn: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Time ``model`` at r=0 and at its levels, in turns, in batches of each size.

    Args:
        dtype_setting: ``auto`` or a dtype, as of the server.
        depth: number of blocks, if it is not the model's own.
        on_turn: called after each turn.
    """
    forward, size = _load(model, device, dtype_setting, max(batches), depth)
    rows = []
    for batch in batches:
        runs = _runs(forward, model, (batch, *size))
        times = alternate(runs, plan, partial(_synchronize, device), on_turn)
        rows += _rows(model, forward.network, batch, times)
    return rows


def _load(
    model: Model,
    device: torch.device,
    dtype_setting: str,
    max_batch: int,
    depth: int | None,
) -> tuple[Forward, tuple[int, int, int]]:
    """Return the forward pass of ``model`` and the size ``(C, H, W)`` of its input."""
    arguments = model.arguments if depth is None else {**model.arguments, "depth": depth}
    torch.manual_seed(0)
    network = timm.create_model(model.timm, **arguments).eval()
    size: tuple[int, int, int] = (network.in_chans, *network.patch_embed.img_size)
    plain = tome_core.patch(network)
    constant = [one.counts[0] for one in model.schedules if one.inflection == 0]
    dtype = pick_dtype(dtype_setting, device)
    if dtype is None:
        dtype = choose_dtype(plain, cpu_dtypes(), size, constant, model.name).dtype
    fast = tome_core.optimize(plain.to(device), dtype, in_place=True)
    forward = Forward(fast, model.mean, model.std, device, model.activation, model.input_dtype)
    if device.type == "cuda":
        wrong = forward.record(constant, max_batch, size)
        if wrong:
            raise RuntimeError(f"{model.name}: CUDA graphs {wrong}")
    return forward, size


def _runs(
    forward: Forward,
    model: Model,
    shape: tuple[int, int, int, int],
) -> list[Callable[[], object]]:
    """Return the passes of one batch of noise at each of the schedules, after a first run."""
    inputs = _noise(shape, model.input_dtype)
    runs: list[Callable[[], object]] = []
    for schedule in model.schedules:
        run = partial(forward.run, inputs, [schedule] * len(inputs), TOP)
        run()
        runs.append(run)
    return runs


def _noise(shape: tuple[int, int, int, int], dtype: torch.dtype) -> InputArray:
    rng = np.random.default_rng(0)
    if dtype == torch.float32:
        return 0.5 * rng.standard_normal(shape, np.float32)
    return rng.integers(0, 256, shape, NUMPY_DTYPES[dtype])


def _rows(
    model: Model,
    network: tome_core.MergedViT,
    batch: int,
    times: Sequence[Sequence[float]],
) -> list[Row]:
    unmerged, *merged = times
    embedding: Any = network.adapter.network.patch_embed
    tokens = embedding.num_patches + network.merging.prefix
    rows = []
    for level, seconds in zip(model.levels, merged, strict=True):
        counts = network.token_counts(level.parsed, tokens)
        ratios = [slow / quick for slow, quick in zip(unmerged, seconds, strict=True)]
        rows.append(
            Row(
                model=model,
                level=level,
                dtype=dtype_name(next(network.parameters()).dtype),
                batch=batch,
                tokens=(tokens, counts[-1]),
                seconds=(statistics.median(unmerged), statistics.median(seconds)),
                speedup=statistics.median(ratios),
                bound=1 / network.cost().relative(counts),
            )
        )
    return rows


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(rows: Sequence[Row]) -> Table:
    """Return the table of ``rows``."""
    names = ("model", "dtype", "batch", "r", "tokens", "ms", "speed-up", "bound", "bar")
    found = Table(*names, "published")
    for row in rows:
        before, after = row.seconds
        bar = f"{row.level.bar}x" if row.level.bar else ""
        found.add_row(
            row.model.name,
            row.dtype,
            str(row.batch),
            f"0, {row.level.schedule}",
            f"{row.tokens[0]}, {row.tokens[1]}",
            f"{_milliseconds(before)}, {_milliseconds(after)}",
            f"{row.speedup:.2f}x",
            f"{row.bound:.2f}x",
            bar if row.passes else f"{bar}, missed",
            row.level.published,
        )
    return found


def _milliseconds(seconds: float) -> str:
    """Return whole milliseconds, or three significant digits below 100."""
    value = 1000 * seconds
    for digits, limit in enumerate((99.95, 9.995)):
        if value >= limit:
            return f"{value:.{digits}f}"
    return f"{value:.2f}"


def command_line(
    module: str,
    description: str | None,
    models: Sequence[Model],
    default_models: Sequence[Model],
    default_batches: Sequence[int],
) -> int:
    """Measure what the command line of ``module`` asks for. Returns 1 if a level is below its bar.

    Args:
        models: that it can name.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    by_key = {model.key: model for model in models}
    default_keys = [model.key for model in default_models]
    batches = list(default_batches)
    parser.add_argument("--models", nargs="+", choices=list(by_key), default=default_keys)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: one per core")
    parser.add_argument("--batch", nargs="+", type=int, default=batches, help="sizes of a batch")
    parser.add_argument("--rounds", type=int, help="turns of each schedule")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_DEPTH} blocks and {QUICK.rounds} rounds: shows that it runs, not how fast",
    )
    arguments = parser.parse_args()
    if min(arguments.batch) < 1:
        parser.error("--batch: at least 1")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    device = pick_device(arguments.device)
    configure_pytorch(device)
    threads = set_threads(arguments.threads)
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    for name, value in about(module, device, threads).items():
        console.print(f"{name}: {value}", highlight=False)
    plan = QUICK if arguments.quick else PLAN
    if arguments.rounds is not None:
        plan = replace(plan, rounds=arguments.rounds)
    depth = QUICK_DEPTH if arguments.quick else None
    chosen = [by_key[key] for key in arguments.models]
    rows = _measure_all(chosen, device, arguments.dtype, plan, arguments.batch, depth)
    console.print(table(rows))
    return 0 if arguments.quick or all(row.passes for row in rows) else 1


def _measure_all(
    models: Sequence[Model],
    device: torch.device,
    dtype_setting: str,
    plan: Plan,
    batches: Sequence[int],
    depth: int | None,
) -> list[Row]:
    """Measure one model after the other, with a bar of progress where there is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    rows = []
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        for model in models:
            turns = plan.rounds * len(batches) * len(model.schedules)
            task = progress.add_task(f"{model.name}, turns", total=turns)
            on_turn = partial(progress.advance, task)
            rows += measure(model, device, dtype_setting, plan, batches, depth, on_turn)
    return rows
