"""What a model takes on this device: run before it is called ready, so that no request pays for a first time."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from dataclasses import dataclass

from server.engine.runner import Runner
from server.messages import Level, ModelInfo
from tome_core.schedule import Schedule

ROUNDS = 3
LEVEL_BATCH = 8


@dataclass(frozen=True)
class Baseline:
    """Seconds that a batch takes at r=0, by its size: what the speed-up is measured against."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, images: int) -> float:
        """Seconds for ``images``, at most the largest size, on the line between the two sizes measured around it."""
        right = bisect_left(self.sizes, images)
        if right == 0:
            return self.seconds[0]
        left = right - 1
        slope = (self.seconds[right] - self.seconds[left]) / (self.sizes[right] - self.sizes[left])
        return self.seconds[left] + slope * (images - self.sizes[left])


def measure_baseline(runner: Runner, max_batch: int) -> Baseline:
    """Time r=0 at 1, 2, 4 ... images and at ``max_batch``; medians, after one pass that is not counted."""
    sizes = sorted({1 << power for power in range(max_batch.bit_length())} | {max_batch})
    plain = Schedule.constant(0)
    runner.seconds(1, plain)
    return Baseline(tuple(sizes), tuple(_median(runner, size, plain) for size in sizes))


def measure_levels(runner: Runner, levels: tuple[int, ...], max_batch: int) -> tuple[Level, ...]:
    """Describe each ``r``, timed against r=0 in turns, so that a change of the machine's speed meets all alike."""
    batch = min(LEVEL_BATCH, max_batch)
    schedules = [Schedule.constant(r) for r in levels]
    rounds = [[runner.seconds(batch, schedule) for schedule in schedules] for _ in range(ROUNDS)]
    medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
    return tuple(
        Level(
            r=str(schedule),
            tokens_out=runner.tokens(schedule)[-1],
            relative_flops=runner.model.network.cost().relative(runner.tokens(schedule)),
            speedup=medians[0] / seconds,
            accuracy=runner.model.accuracy.get(str(schedule)),
        )
        for schedule, seconds in zip(schedules, medians, strict=True)
    )


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
    )


def _median(runner: Runner, batch: int, schedule: Schedule) -> float:
    return statistics.median(runner.seconds(batch, schedule) for _ in range(ROUNDS))
