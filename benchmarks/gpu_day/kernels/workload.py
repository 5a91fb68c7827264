"""One kernel on one batch: what is called, how right it is, and how long it takes in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_day.accelerator import Accelerator, Call, in_turns, median
from benchmarks.gpu_day.day import Day, Row, describe

DTYPE = torch.bfloat16
ALLOWED = 2**-7  # relative to a number, or to 1 if it is smaller: twice the largest of rounding
REPEATS = 10  # calls that are recorded as one, so that a replay costs nothing beside them
ROUNDS = 5
TURN_SECONDS = 0.004
DRY_VARIANTS = 2


@dataclass(frozen=True)
class Workload:
    """One kernel on one batch.

    Attributes:
        kernel, shape: names.
        bytes: that have to be read and written, if all is done in one pass.
        flops: of matrix products.
        deviation: the largest error of a result, of what `variants` give, in units of what is
            allowed.
        variants: ours; the first is what is served. Each gives its result.
        peers: PyTorch's.
    """

    kernel: str
    shape: str
    bytes: int
    flops: int
    deviation: Callable[[Any], float]
    variants: dict[str, Call]
    peers: dict[str, Call] = field(default_factory=dict)


def measure(day: Day, on: Accelerator, workload: Workload) -> None:
    """A row for each variant and peer, in their order."""
    rows: dict[str, Row] = {}
    calls: dict[str, Call] = {}
    repeats = 1 if day.dry else REPEATS
    served: Any = None
    variants = dict(list(workload.variants.items())[: DRY_VARIANTS if day.dry else None])
    for name, call in {**variants, **workload.peers}.items():
        ours = name in workload.variants
        row: Row = {"kernel": workload.kernel, "shape": workload.shape, "name": name, "ours": ours}
        try:
            started = time.perf_counter()
            result = call()
            on.synchronize()
            row["first_s"] = round(time.perf_counter() - started, 2)
            served = result if served is None else served
            if ours:
                row.update(
                    deviation=round(workload.deviation(result), 3), same_bits=same(result, served)
                )
            row["host_us"] = host_microseconds(on, call, repeats)
            row["recorded"] = not on.waits(call)
            several = partial(repeat, call, repeats)
            calls[name] = on.record(several) if row["recorded"] else several
        except (
            Exception
        ) as error:  # another version of PyTorch, a cut that does not fit: the others go on
            day.write(**row, **{"error" if ours else "note": describe(error)})
            continue
        rows[name] = row
    rounds, turn = (1, 0.0) if day.dry else (ROUNDS, TURN_SECONDS)
    times = in_turns(on, calls, rounds, turn, day.until)
    for name, row in rows.items():
        seconds = median(times[name]) / repeats
        day.write(
            **row,
            us=1e6 * seconds,
            gb_per_s=workload.bytes / seconds / 1e9,
            tflop_per_s=workload.flops / seconds / 1e12,
        )


def repeat(call: Call, repeats: int) -> None:
    """One call after the other."""
    for _ in range(repeats):
        call()


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal, bit by bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return all(same(a, b) for a, b in zip(one, other, strict=True))


def host_microseconds(on: Accelerator, call: Call, repeats: int) -> float:
    """What one call costs the thread that makes it."""
    on.synchronize()
    started = time.perf_counter()
    repeat(call, repeats)
    taken = time.perf_counter() - started
    on.synchronize()
    return 1e6 * taken / repeats


def worst(found: Tensor, expected: Tensor) -> float:
    """The largest error, in units of what is allowed."""
    return ((found.float() - expected).abs() / expected.abs().clamp(min=1.0)).max().item() / ALLOWED
