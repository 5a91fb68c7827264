"""`python -m benchmarks.audio`: how much faster merging makes the published models of sound.

AudioMAE ViT-B and AST-B with random weights run as the engine runs them, from float32 spectrograms
in host memory to the best classes, each in the dtype that `auto` picks on this machine. r=0 and the
r of the table take turns in one run; times are medians, and a speed-up is the median of those of
the rounds. Beside it are its bound by FLOPs, 1 over the share that merging leaves, and what was
published. The exit code is 1 if a speed-up is below its bar.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table

import tome_core
from benchmarks.measure import Plan, alternate
from benchmarks.results import about
from server.engine.device.dtype_choice import choose_dtype, dtype_name
from server.engine.device.forward import Forward
from server.engine.device.placement import (
    configure_pytorch,
    cpu_dtypes,
    pick_device,
    pick_dtype,
    set_threads,
)
from tome_core.networks.architectures import AST_ARCHITECTURES, AUDIOSET_CLASSES
from tome_core.schedule import Schedule

TABLE_WIDTH = 120  # columns, where the output is not a terminal
BATCH = 4
TOP = 5
PLAN = Plan(rounds=9, turn_seconds=0.5, budget_seconds=240)
QUICK = Plan(rounds=3, turn_seconds=0.0, budget_seconds=30)
QUICK_DEPTH = 2


@dataclass(frozen=True)
class Model:
    """A published model.

    Attributes:
        size: ``(C, H, W)`` of its input.
        r: tokens merged in each block.
        bar: the speed-up that it must reach.
        published: the speed-up in the literature.
        arguments: of timm.
    """

    name: str
    timm: str
    size: tuple[int, int, int]
    r: int
    bar: float
    published: str
    arguments: dict[str, Any] = field(default_factory=dict)


MODELS = (
    Model(
        name="AudioMAE ViT-B",
        timm="vit_base_patch16_224",
        size=(1, 1024, 128),
        r=40,
        bar=1.7,
        published="1.94x (ToMe)",
        arguments={"global_pool": "avg", "num_classes": AUDIOSET_CLASSES},
    ),
    Model(
        name="AST-B",
        timm=AST_ARCHITECTURES[-1],
        size=(1, 128, 1024),
        r=96,
        bar=1.8,
        published="",
    ),
)


@dataclass(frozen=True)
class Row:
    """What was measured of one model; seconds are of a batch."""

    model: Model
    dtype: str
    tokens: tuple[int, int]
    seconds: tuple[float, float]
    speedup: float
    bound: float

    @property
    def passes(self) -> bool:
        """Whether the speed-up reaches the bar."""
        return self.speedup >= self.model.bar


def measure(
    model: Model,
    device: torch.device,
    dtype_setting: str,
    plan: Plan,
    depth: int | None = None,
) -> Row:
    """Time ``model`` at r=0 and at its r, in turns.

    Args:
        dtype_setting: ``auto`` or a dtype, as of the server.
        depth: number of blocks, if it is not the model's own.
    """
    channels, height, width = model.size
    arguments = {"img_size": (height, width), "in_chans": channels, **model.arguments}
    if depth is not None:
        arguments["depth"] = depth
    torch.manual_seed(0)
    plain = tome_core.patch(timm.create_model(model.timm, **arguments).eval())
    dtype = pick_dtype(dtype_setting, device)
    if dtype is None:
        dtype = choose_dtype(plain, cpu_dtypes(), model.size, (0, model.r), model.name).dtype
    fast = tome_core.optimize(plain.to(device), dtype)
    forward = Forward(fast, (), (), device, "sigmoid", torch.float32)
    if device.type == "cuda":
        wrong = forward.record((0, model.r), BATCH, model.size)
        if wrong:
            raise RuntimeError(f"{model.name}: CUDA graphs {wrong}")
    times = alternate(_runs(forward, model), plan, partial(_synchronize, device))
    tokens = fast.input_tokens(torch.zeros(1, *model.size, device=device))
    counts = fast.token_counts(model.r, tokens)
    ratios = [slow / quick for slow, quick in zip(*times, strict=True)]
    return Row(
        model=model,
        dtype=dtype_name(dtype),
        tokens=(tokens, counts[-1]),
        seconds=(statistics.median(times[0]), statistics.median(times[1])),
        speedup=statistics.median(ratios),
        bound=1 / fast.cost().relative(counts),
    )


def _runs(forward: Forward, model: Model) -> list[Callable[[], object]]:
    """Return the passes of one batch of noise at r=0 and at the model's r, after a first run."""
    rng = np.random.default_rng(0)
    windows = 0.5 * rng.standard_normal((BATCH, *model.size), np.float32)
    runs: list[Callable[[], object]] = []
    for r in (0, model.r):
        run = partial(forward.run, windows, [Schedule.constant(r)] * BATCH, TOP)
        run()
        runs.append(run)
    return runs


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(rows: Sequence[Row]) -> Table:
    """Return the table of ``rows``."""
    found = Table("model", "dtype", "r", "tokens", "ms", "speed-up", "bound", "bar", "published")
    for row in rows:
        model = row.model
        before, after = row.seconds
        found.add_row(
            model.name,
            row.dtype,
            f"0, {model.r}",
            f"{row.tokens[0]}, {row.tokens[1]}",
            f"{1000 * before:.0f}, {1000 * after:.0f}",
            f"{row.speedup:.2f}x",
            f"{row.bound:.2f}x",
            f"{model.bar}x" if row.passes else f"{model.bar}x, missed",
            model.published,
        )
    return found


def main() -> int:
    """Command line. Returns 1 if a model is below its bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audio", description=__doc__)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: one per core")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_DEPTH} blocks and {QUICK.rounds} rounds: shows that it runs, not how fast",
    )
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    configure_pytorch(device)
    threads = set_threads(arguments.threads)
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    for name, value in about("benchmarks.audio", device, threads).items():
        console.print(f"{name}: {value}", highlight=False)
    rows = []
    for model in MODELS:
        console.print(f"measuring {model.name} in batches of {BATCH}")
        plan = QUICK if arguments.quick else PLAN
        depth = QUICK_DEPTH if arguments.quick else None
        rows.append(measure(model, device, arguments.dtype, plan, depth))
    console.print(table(rows))
    return 0 if arguments.quick or all(row.passes for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
