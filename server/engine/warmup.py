"""What a model takes on this device: run before it is called ready, so that no request pays for a first time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count

from server.engine.execution.runner import Runner
from server.engine.scheduling.calibration import Sample
from server.ipc.messages import Level, ModelInfo
from tome_core.schedule import Schedule, most_mergeable

ROUNDS = 3
LEVEL_BATCH = 8
LEVEL_SECONDS = 0.5  # at least, for timing all levels: a small model has many turns in it
# A large model on a slow device is described by fewer and smaller batches rather than being ready
# minutes later.
BUDGET_SECONDS = 10.0


def possible(runner: Runner, levels: Sequence[int]) -> list[Schedule]:
    """Those of ``levels`` that the model can do, as schedules."""
    largest = most_mergeable(runner.model.tokens, runner.model.prefix)
    return [Schedule.constant(level) for level in levels if level <= largest]


def measure_costs(
    runner: Runner, levels: Sequence[Schedule], max_batch: int, buckets: Sequence[int] = ()
) -> list[Sample]:
    """Time batches of all kinds, small ones first, as far as the budget reaches.

    Each runs in several rounds, and the shortest time counts: whatever else uses the machine only
    makes it longer. The first round brings it all into caches; where even that takes all of the
    budget, it is what counts.

    Args:
        buckets: batch sizes in which ``levels`` are recorded.
    """
    runner.seconds([levels[0]])  # the first pass of all is not counted
    kinds = list(
        graph_kinds(levels, max_batch, buckets) if buckets else kinds_of(levels, max_batch)
    )
    times: list[list[float]] = [[] for _ in kinds]
    end = time.monotonic() + BUDGET_SECONDS
    for _ in range(1 + ROUNDS):
        for kind, taken in zip(kinds, times, strict=True):
            if time.monotonic() > end and any(times):
                break
            taken.append(runner.seconds(kind))
    return [Sample(kind, min(taken)) for kind, taken in zip(kinds, times, strict=True) if taken]


def kinds_of(levels: Sequence[Schedule], max_batch: int) -> Iterator[tuple[Schedule, ...]]:
    """Batches that tell the features of `server.latency.cost` apart: some sizes, at the ends of ``levels`` and mixed.

    The mildest level that merges at all, where most tokens enter blocks that merge, is timed in the
    sizes between.
    """
    sizes = sorted({1, min(4, max_batch), min(12, max_batch), max_batch})
    for size in sizes:
        mildest = levels[1:2] if 1 < size < max_batch else ()
        for schedule in dict.fromkeys((levels[0], *mildest, levels[-1])):
            yield (schedule,) * size
        if size > 1 and len(levels) > 1:
            yield mixed(levels, size)


def graph_kinds(
    levels: Sequence[Schedule], max_batch: int, buckets: Sequence[int]
) -> Iterator[tuple[Schedule, ...]]:
    """The same where graphs run some batches: all levels in some buckets, and what runs operator by operator.

    Of the latter, some merge in all blocks and some in one: launching merging takes most of its
    time.
    """
    other = Schedule.constant(next(r for r in count(1) if Schedule.constant(r) not in levels))
    for size in sorted({1, min(8, max_batch), min(32, max_batch), max_batch}):
        recorded = levels if size <= buckets[-1] else (levels[0], levels[-1])
        for schedule in (*recorded, other, Schedule.per_layer([1])):
            yield (schedule,) * size
        if size > 1 and len(levels) > 1:
            yield mixed(levels, size)


def mixed(levels: Sequence[Schedule], size: int) -> tuple[Schedule, ...]:
    """A batch of ``size`` images under all ``levels`` in turn."""
    return tuple(levels[index % len(levels)] for index in range(size))


def measure_levels(runner: Runner, levels: Sequence[Schedule], batch: int) -> tuple[Level, ...]:
    """Describe each of ``levels``, from batches of ``batch`` images.

    Each is timed against r=0 in turns, so that a change of the machine's speed meets all alike; the
    shortest time counts, as in `measure_costs`.
    """
    times: list[list[float]] = [[] for _ in levels]
    end = time.monotonic() + LEVEL_SECONDS
    while len(times[0]) <= ROUNDS or time.monotonic() < end:
        for schedule, taken in zip(levels, times, strict=True):
            taken.append(runner.seconds([schedule] * batch))
    shortest = [min(taken) for taken in times]
    return tuple(
        Level(
            r=str(schedule),
            tokens_out=runner.tokens(schedule)[-1],
            relative_flops=runner.model.network.cost().relative(runner.tokens(schedule)),
            speedup=shortest[0] / seconds,
            accuracy=runner.model.accuracy.get(str(schedule)),
        )
        for schedule, seconds in zip(levels, shortest, strict=True)
    )


def level_batch(seconds: float, levels: int, max_batch: int, device: str = "cpu") -> int:
    """The largest batch with which timing all levels fits the budget: ``max_batch`` on a GPU, else `LEVEL_BATCH`.

    A GPU under load runs full batches, and what merging gains there says nothing of small ones. A
    CPU gains about the same in all.

    Args:
        seconds: of one image at r=0.
        device: its type.
    """
    batch = max_batch if device == "cuda" else min(LEVEL_BATCH, max_batch)
    while batch > 1 and seconds * batch * levels * (1 + ROUNDS) > BUDGET_SECONDS:
        batch //= 2
    return batch


def describe(runner: Runner, levels: tuple[Level, ...]) -> ModelInfo:
    """What the API needs to know of the model."""
    model = runner.model
    return ModelInfo(
        name=model.spec.name,
        architecture=model.spec.timm,
        transform=model.transform,
        labels=model.labels,
        tokens=model.tokens,
        prefix=model.prefix,
        depth=model.depth,
        device=str(runner.device),
        dtype=runner.dtype,
        levels=levels,
        grid=model.grid,
        acceleration=runner.acceleration,
        cost=model.network.cost(),
    )
