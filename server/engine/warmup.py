"""What a model takes on this device: run before it is called ready, so that no request pays for a first time."""

from __future__ import annotations

import statistics
import time
from bisect import bisect_left
from dataclasses import dataclass

from server.engine.runner import Runner
from server.messages import Level, ModelInfo
from tome_core.schedule import Schedule, most_mergeable

ROUNDS = 3
LEVEL_BATCH = 8
# A large model on a slow device is described by fewer sizes and smaller batches rather than being ready minutes later.
BUDGET_SECONDS = 10.0


@dataclass(frozen=True)
class Baseline:
    """Seconds that a batch takes at r=0, by its size: what the speed-up is measured against."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, images: int) -> float:
        """Seconds for ``images``, on the line between the two sizes around it; in proportion beyond the largest."""
        right = bisect_left(self.sizes, images)
        if right == len(self.sizes):
            return self.seconds[-1] * images / self.sizes[-1]
        if right == 0:
            return self.seconds[0]
        left = right - 1
        slope = (self.seconds[right] - self.seconds[left]) / (self.sizes[right] - self.sizes[left])
        return self.seconds[left] + slope * (images - self.sizes[left])


def measure_baseline(runner: Runner, max_batch: int) -> Baseline:
    """Time r=0 at 1, 2, 4 ... images and at ``max_batch``: medians, as far as the budget reaches."""
    plain, end = Schedule.constant(0), time.monotonic() + BUDGET_SECONDS
    runner.seconds(1, plain)  # the first pass of all is not counted
    sizes, seconds = [], []
    for size in sorted({1 << power for power in range(max_batch.bit_length())} | {max_batch}):
        sizes.append(size)
        seconds.append(statistics.median(runner.seconds(size, plain) for _ in range(ROUNDS)))
        if time.monotonic() > end:
            break
    return Baseline(tuple(sizes), tuple(seconds))


def measure_levels(runner: Runner, levels: tuple[int, ...], batch: int) -> tuple[Level, ...]:
    """Describe each ``r`` that the model can do, from batches of ``batch`` images.

    Each is timed against r=0 in turns, so that a change of the machine's speed meets all alike; the first turn is not
    counted.
    """
    model = runner.model
    largest = most_mergeable(model.tokens, model.prefix)
    schedules = [Schedule.constant(r) for r in levels if r <= largest]
    rounds = [[runner.seconds(batch, schedule) for schedule in schedules] for _ in range(1 + ROUNDS)]
    medians = [statistics.median(times) for times in zip(*rounds[1:], strict=True)]
    return tuple(
        Level(
            r=str(schedule),
            tokens_out=runner.tokens(schedule)[-1],
            relative_flops=model.network.cost().relative(runner.tokens(schedule)),
            speedup=medians[0] / seconds,
            accuracy=model.accuracy.get(str(schedule)),
        )
        for schedule, seconds in zip(schedules, medians, strict=True)
    )


def level_batch(baseline: Baseline, levels: int, max_batch: int) -> int:
    """The largest batch, of `LEVEL_BATCH` and ``max_batch`` at most, with which timing all levels fits the budget."""
    batch = min(LEVEL_BATCH, max_batch)
    while batch > 1 and baseline(batch) * levels * (1 + ROUNDS) > BUDGET_SECONDS:
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
    )
