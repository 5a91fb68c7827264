"""Warm-up of a model: times batches, so that no request pays for first runs and costs are known."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count

from server.engine.execution.runner import Runner
from server.engine.scheduling.calibration import Sample
from server.ipc.messages import LabelSet, Level, ModelInfo
from tome_core.schedule import Schedule

ROUNDS = 3  # in which each batch is timed, after one that fills caches

# A large model on a slow device is measured with fewer and smaller batches, rather than being ready
# minutes later.
BUDGET_SECONDS = 10.0

# Minimum time for measuring all levels: a small model needs many rounds for stable numbers.
LEVEL_SECONDS = 0.5

CPU_LEVEL_BATCH = 8  # images in a batch that measures a level on a CPU

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
    """Time batches for the calibration, small ones first, until the budget is spent.

    Each batch runs in several rounds, and its shortest time counts: other users of the machine only
    make it longer. The first round fills caches. If the budget ends in it, it counts.

    Args:
        buckets: batch sizes in which CUDA graphs of ``levels`` are recorded.
    """
    runner.seconds([levels[0]])  # the very first run does not count
    batches = list(calibration_batches(levels, max_batch))
    if buckets:
        batches = list(graph_calibration_batches(levels, max_batch, buckets))
    times = _time_in_rounds(runner, batches)
    samples = []
    for batch, batch_times in zip(batches, times, strict=True):
        if batch_times:
            samples.append(Sample(batch, min(batch_times)))
    return samples


def _time_in_rounds(
    runner: Runner,
    batches: Sequence[tuple[Schedule, ...]],
) -> list[list[float]]:
    """Return the times of each batch: at least one of the first, none of those past the budget."""
    times: list[list[float]] = [[] for _ in batches]
    end = time.monotonic() + BUDGET_SECONDS
    for _ in range(1 + ROUNDS):
        for batch, batch_times in zip(batches, times, strict=True):
            if time.monotonic() > end and any(times):
                break
            batch_times.append(runner.seconds(batch))
    return times


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
            timed[1:1] = levels[1:2]
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


def measure_levels(
    runner: Runner,
    levels: Sequence[Schedule],
    batch_size: int,
) -> tuple[Level, ...]:
    """Measure the speedup of each level in batches of ``batch_size`` images.

    All levels run in turns, so that a change of the machine's speed affects all alike. The shortest
    time counts, and the budget ends with a turn, as in `measure_costs`.
    """
    times: list[list[float]] = [[] for _ in levels]
    started = time.monotonic()
    elapsed = 0.0
    while elapsed < LEVEL_SECONDS or (len(times[0]) <= ROUNDS and elapsed < BUDGET_SECONDS):
        for schedule, level_times in zip(levels, times, strict=True):
            level_times.append(runner.seconds([schedule] * batch_size))
        elapsed = time.monotonic() - started
    r0_seconds = min(times[0])
    measured = []
    for schedule, level_times in zip(levels, times, strict=True):
        speedup = r0_seconds / min(level_times)
        measured.append(_level(runner, schedule, speedup))
    return tuple(measured)


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


def level_batch_size(
    image_seconds: float,
    levels: int,
    max_batch: int,
    device_type: str = "cpu",
) -> int:
    """Return the largest batch size with which measuring all levels fits into the budget.

    A GPU under load runs full batches, and the speedup of small ones tells nothing about these, so
    its batches have ``max_batch`` images. On a CPU the speedup hardly depends on the size, so
    `CPU_LEVEL_BATCH` is enough.

    Args:
        image_seconds: of one image at r=0.
        levels: how many there are.
    """
    size = max_batch if device_type == "cuda" else min(CPU_LEVEL_BATCH, max_batch)
    runs = levels * (1 + ROUNDS)
    while size > 1 and image_seconds * size * runs > BUDGET_SECONDS:
        size //= 2
    return size


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
