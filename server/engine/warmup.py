"""Warm-up of a model: times batches, so that no request pays for first runs and costs are known."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count

from server.engine.execution.runner import Runner
from server.engine.scheduling.calibration import Calibration, Sample
from server.ipc.messages import LabelSet, Level, ModelInfo
from tome_core.schedule import Schedule

# For so long batches are timed before a model is ready, or until the first `REQUIRED_BATCHES` have
# run. Batches that are served refine the cost model from then on.
BUDGET_SECONDS = 0.4
ROUNDS = 2  # the first fills caches; the shorter time of each batch counts
REQUIRED_BATCHES = 5  # one and four images at r=0 and the largest level, four at the second level

# After this time two batches are enough, one image at r=0 and one at the largest level. Caches
# hardly count then, so there is no second round.
SLOW_SECONDS = 3.0

# Where CUDA graphs are recorded, which takes longer than this: both ways in which batches can run
# have to be told apart, with batches of milliseconds.
GRAPH_BUDGET_SECONDS = 10.0
GRAPH_ROUNDS = 4

# What a level has from the row of the model's profile.
_OF_PROFILE = (
    "accuracy",
    "margin",
    "agreement",
    "agreement_low",
    "margin_agreement",
    "cascade_accuracy",
    "cosine",
    "cosine_low",
    "cosine_p1",
    "cosine_p5",
    "recall_1",
    "recall_10",
    "mixed_recall_1",
    "mixed_recall_10",
)

# Batch sizes that are timed, besides the largest: without CUDA graphs, and beside them.
_SIZES = (1, 4, 12)
_GRAPH_SIZES = (1, 8, 32)


def level_schedules(runner: Runner) -> list[Schedule]:
    """Return the schedules of the model's levels, r=0 first."""
    return [Schedule.constant(level) for level in runner.model.levels]


def measure_costs(
    runner: Runner,
    levels: Sequence[Schedule],
    max_batch: int,
    buckets: Sequence[int] = (),
) -> list[Sample]:
    """Time batches for the calibration, small ones first, as many as the budget allows.

    Each batch runs in several rounds, and its shortest time counts: other users of the machine only
    make it longer.

    Args:
        buckets: batch sizes in which CUDA graphs of ``levels`` are recorded.
    """
    if buckets:
        batches = list(graph_calibration_batches(levels, max_batch, buckets))
        return _time_in_rounds(runner, batches, GRAPH_BUDGET_SECONDS, GRAPH_ROUNDS)
    batches = list(calibration_batches(levels, max_batch))
    return _time_in_rounds(runner, batches, BUDGET_SECONDS, ROUNDS)


def _time_in_rounds(
    runner: Runner,
    batches: Sequence[tuple[Schedule, ...]],
    budget: float,
    rounds: int,
) -> list[Sample]:
    """Time the first of ``batches``, as many as fit into the budget, but see the constants."""
    started = time.monotonic()
    shortest: dict[tuple[Schedule, ...], float] = {}
    elapsed = 0.0
    for batch in batches:
        is_spent = elapsed > budget / rounds and len(shortest) >= REQUIRED_BATCHES
        if is_spent or (elapsed > SLOW_SECONDS and len(shortest) >= 2):
            break
        shortest[batch] = runner.seconds(batch)
        elapsed = time.monotonic() - started
    if elapsed < SLOW_SECONDS:
        for _ in range(1, rounds):
            for batch, seconds in shortest.items():
                shortest[batch] = min(seconds, runner.seconds(batch))
    return [Sample(batch, seconds) for batch, seconds in shortest.items()]


def calibration_batches(
    levels: Sequence[Schedule],
    max_batch: int,
) -> Iterator[tuple[Schedule, ...]]:
    """Yield batches from which a fit can separate the features of `server.latency.cost`.

    They are of a few sizes, under the first and the last of ``levels``, and mixed. In the sizes
    between the smallest and the largest, the first level that merges is timed too: under it the
    most tokens enter blocks that merge.
    """
    for size in _up_to(max_batch, _SIZES):
        timed = [levels[0], levels[-1]]
        if 1 < size < max_batch:
            timed += levels[1:2]
        for schedule in dict.fromkeys(timed):
            yield (schedule,) * size
        if size > 1 and len(levels) > 1:
            yield mixed_batch(levels, size)


def graph_calibration_batches(
    levels: Sequence[Schedule],
    max_batch: int,
    buckets: Sequence[int],
) -> Iterator[tuple[Schedule, ...]]:
    """Yield batches as `calibration_batches`, for a device where CUDA graphs run some of them.

    These are all levels in some buckets, and batches that run operator by operator. Of the latter
    some merge in all blocks and some in one, since most of their time is launching merges.
    """
    not_recorded = [_schedule_outside(levels), Schedule.per_layer([1])]
    for size in _up_to(max_batch, _GRAPH_SIZES):
        timed = list(levels)
        if size > buckets[-1]:
            timed = [levels[0], levels[-1]]
        for schedule in timed + not_recorded:
            yield (schedule,) * size
        if size > 1 and len(levels) > 1:
            yield mixed_batch(levels, size)


def _schedule_outside(levels: Sequence[Schedule]) -> Schedule:
    """Return the constant schedule with the smallest r that is not in ``levels``."""
    for r in count(1):
        schedule = Schedule.constant(r)
        if schedule not in levels:
            break
    return schedule


def _up_to(max_batch: int, sizes: Sequence[int]) -> list[int]:
    """Return ``max_batch`` and the smaller ones of ``sizes``, ascending."""
    smaller = {size for size in sizes if size < max_batch}
    return sorted(smaller | {max_batch})


def mixed_batch(
    levels: Sequence[Schedule],
    size: int,
) -> tuple[Schedule, ...]:
    """Return a batch of ``size`` images under all ``levels`` in turn."""
    return tuple(levels[index % len(levels)] for index in range(size))


def describe_levels(
    runner: Runner,
    levels: Sequence[Schedule],
    calibration: Calibration,
    max_batch: int,
) -> tuple[Level, ...]:
    """Return the levels, with their speedup in full batches by the calibrated cost model."""
    r0_seconds = calibration.predict([Schedule.constant(0)] * max_batch)
    described = []
    for schedule in levels:
        speedup = r0_seconds / calibration.predict([schedule] * max_batch)
        described.append(_level(runner, schedule, speedup))
    return tuple(described)


def _level(runner: Runner, schedule: Schedule, speedup: float) -> Level:
    model = runner.model
    tokens = runner.tokens(schedule)
    row = model.profile.get(str(schedule))
    return Level(
        r=str(schedule),
        tokens_out=tokens[-1],
        relative_flops=model.network.cost().relative(tokens),
        speedup=speedup,
        **{name: getattr(row, name) for name in _OF_PROFILE if row},
    )


def model_info(runner: Runner, levels: tuple[Level, ...]) -> ModelInfo:
    """Return what the API process needs to know about the model."""
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
        dtype_speedup=model.dtype_speedup,
        cost=model.network.cost(),
        merging=model.spec.merging,
        activation=model.activation,
        embedding_dim=runner.embedding_dim(),
        matryoshka=model.spec.matryoshka,
        label_sets=tuple(LabelSet(name, one.labels) for name, one in model.label_sets.items()),
    )
