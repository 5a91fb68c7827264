"""Warm-up of a model: times batches, so that their costs are known before the first request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count

from server.engine.execution.runner import Runner
from server.engine.scheduling.calibration import Calibration, Sample
from server.ipc.messages import LabelSet, Level, ModelInfo
from tome_core.schedule import Schedule

# Each batch is timed in two rounds: the first fills caches, and the shorter time counts. Batches
# that are served refine the cost model from then on.
ROUNDS = 2
REQUIRED_IMAGES = 4  # batches of one level and so many images always run,
FIRST_ROUND_SECONDS = 0.2  # others where they fit into this

# Of a model that takes longer than this for an image, single images are timed.
SLOW_IMAGE_SECONDS = 0.3

# Where CUDA graphs are recorded, which takes longer than this: both ways in which batches can run
# have to be told apart, with batches of milliseconds.
GRAPH_ROUNDS = 4
GRAPH_FIRST_ROUND_SECONDS = 5.0

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
    """Time batches for the calibration, small ones first, as many as the time allows.

    Each batch runs in several rounds, and its shortest time counts: other users of the machine only
    make it longer.

    Args:
        buckets: batch sizes in which CUDA graphs of ``levels`` are recorded.
    """
    r0_seconds = runner.seconds(levels[:1])
    if buckets:
        batches = list(graph_calibration_batches(levels, max_batch, buckets))
        return _time_in_rounds(runner, batches, GRAPH_FIRST_ROUND_SECONDS, GRAPH_ROUNDS)
    if r0_seconds > SLOW_IMAGE_SECONDS:
        r0_seconds = runner.seconds(levels[:1])  # without what the very first run loads
    if r0_seconds > SLOW_IMAGE_SECONDS:
        return _time_images(runner, levels, r0_seconds)
    batches = list(calibration_batches(levels, max_batch))
    return _time_in_rounds(runner, batches, FIRST_ROUND_SECONDS, ROUNDS)


def _time_images(
    runner: Runner,
    levels: Sequence[Schedule],
    r0_seconds: float,
) -> list[Sample]:
    """Time an image of a slow model at the second and the last of ``levels``.

    Args:
        r0_seconds: of one at r=0.
    """
    # What does not grow with the batch is milliseconds, so two images take twice as long as one.
    samples = [Sample((levels[0],) * images, images * r0_seconds) for images in (1, 2)]
    merging = levels[1:]
    for schedule in dict.fromkeys([*merging[:1], *merging[-1:]]):  # once, if they are the same
        samples.append(Sample((schedule,), runner.seconds([schedule])))
    return samples


def _time_in_rounds(
    runner: Runner,
    batches: Sequence[tuple[Schedule, ...]],
    first_round_seconds: float,
    rounds: int,
) -> list[Sample]:
    """Time ``batches``: those that are required, and others that fit into the first round."""
    started = time.monotonic()
    shortest: dict[tuple[Schedule, ...], float] = {}
    for batch in batches:
        is_required = len(batch) <= REQUIRED_IMAGES and len(set(batch)) == 1
        if shortest and not is_required:
            expected = len(batch) * shortest[batches[0]]  # of one image
            if time.monotonic() - started + expected > first_round_seconds:
                break
        shortest[batch] = runner.seconds(batch)
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
