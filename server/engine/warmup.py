"""What a model takes on this device: run before it is called ready, so that no request pays for a first time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from server.engine.calibration import Sample
from server.engine.runner import Runner
from server.messages import Level, ModelInfo
from tome_core.schedule import Schedule, most_mergeable

ROUNDS = 3
LEVEL_BATCH = 8
LEVEL_SECONDS = 0.5  # at least, for timing all levels: a small model has many turns in it
# A large model on a slow device is described by fewer and smaller batches rather than being ready minutes later.
BUDGET_SECONDS = 10.0


def possible(runner: Runner, levels: Sequence[int]) -> list[Schedule]:
    """Those of ``levels`` that the model can do, as schedules."""
    largest = most_mergeable(runner.model.tokens, runner.model.prefix)
    return [Schedule.constant(level) for level in levels if level <= largest]


def measure_costs(runner: Runner, levels: Sequence[Schedule], max_batch: int) -> list[Sample]:
    """Time batches of all kinds, small ones first, as far as the budget reaches.

    Each runs in several rounds, and the shortest time counts: whatever else uses the machine only makes it longer. The
    first round brings it all into caches; where even that takes all of the budget, it is what counts.
    """
    runner.seconds([levels[0]])  # the first pass of all is not counted
    kinds = list(kinds_of(levels, max_batch))
    times: list[list[float]] = [[] for _ in kinds]
    end = time.monotonic() + BUDGET_SECONDS
    for _ in range(1 + ROUNDS):
        for kind, taken in zip(kinds, times, strict=True):
            if time.monotonic() > end and any(times):
                break
            taken.append(runner.seconds(kind))
    return [Sample(kind, min(taken)) for kind, taken in zip(kinds, times, strict=True) if taken]


def kinds_of(levels: Sequence[Schedule], max_batch: int) -> Iterator[tuple[Schedule, ...]]:
    """Batches that tell the features of `server.costs` apart: some sizes, at the ends of ``levels`` and mixed."""
    sizes = sorted({1, min(4, max_batch), min(12, max_batch), max_batch})
    for size in sizes:
        for schedule in dict.fromkeys((levels[0], levels[-1])):
            yield (schedule,) * size
        if size > 1 and len(levels) > 1:
            yield tuple(levels[index % len(levels)] for index in range(size))


def measure_levels(runner: Runner, levels: Sequence[Schedule], batch: int) -> tuple[Level, ...]:
    """Describe each of ``levels``, from batches of ``batch`` images.

    Each is timed against r=0 in turns, so that a change of the machine's speed meets all alike; the shortest time
    counts, as in `measure_costs`.
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


def level_batch(seconds: float, levels: int, max_batch: int) -> int:
    """The largest batch, of `LEVEL_BATCH` and ``max_batch`` at most, with which timing all levels fits the budget.

    Args:
        seconds: of one image at r=0.
    """
    batch = min(LEVEL_BATCH, max_batch)
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
