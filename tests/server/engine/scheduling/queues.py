"""Queues for the tests of batches: cost models of a CPU and of GPUs, and jobs of all kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from server.engine.scheduling.options import Option
from server.engine.scheduling.queue_forecast import QueuedJob
from server.ipc.messages import Job
from server.latency.cost import NO_GRAPHS, CostFeatures, CostModel, Geometry, RecordedGraphs
from tome_core.cost import BlockCost, Cost
from tome_core.schedule import Schedule

# ViT-B/16 at 224.
GEOMETRY = Geometry(
    tokens=197,
    prefix=1,
    depth=12,
    cost=Cost(116_000_000, (BlockCost(2_359_296, 4_718_592, 1_536, 64),) * 12, prefix=1),
)
LEVELS = tuple(Schedule.constant(r) for r in (0, 4, 8, 12, 16))
BUCKETS = (1, 2, 4, 8, 12, 16)
RECORDED = RecordedGraphs(frozenset(map(GEOMETRY.image_cost, LEVELS)), BUCKETS)
GPU = CostFeatures(
    host=0.001,
    host_merging_blocks=0.0004,
    device=0.0006,
    device_merging_blocks=0.0001,
    tokens=0.00001,
    linear=0.000005,
    pairs=0.00005,
    tokens_in_merging_blocks=0.00001,
    mixed=0.00001,
)
CPU = CostFeatures(
    host=0.005,
    host_merging_blocks=0.0001,
    groups=0.0005,
    tokens=0.0026,
    pairs=0.0086,
    tokens_in_merging_blocks=0.0002,
)
ON_CPU = CostModel(CPU, contention=1.2, margin=0.1, recorded=NO_GRAPHS)
ON_GPU = CostModel(GPU, contention=1.1, delay=0.0005, margin=0.05, recorded=RECORDED)
ON_GPU_WITH_ANY_MIX = CostModel(GPU, margin=0.2, recorded=replace(RECORDED, runs_mixed=True))
ESTIMATES = (ON_CPU, ON_GPU, ON_GPU_WITH_ANY_MIX)


@cache
def options_of(model: str, choices: tuple[Schedule, ...]) -> tuple[Option, ...]:
    """Return the options of jobs; those with the same arguments share them, as in the scheduler."""
    return tuple(option_of(schedule) for schedule in choices)


def option_of(schedule: Schedule) -> Option:
    return Option(schedule, GEOMETRY.image_cost(schedule))


def make_queued(
    number: int,
    choices: tuple[Schedule, ...] = LEVELS[:1],
    model: str = "a",
    due: float = 1.0,
    due_is_binding: bool = True,
) -> QueuedJob:
    job = Job(number, 0, model, choices, 1, 0.0)
    binding_due = due if due_is_binding else math.inf
    return QueuedJob(job, options_of(model, choices), due, binding_due)


# Choices, model, due, whether that is binding.
JobSpec = tuple[tuple[Schedule, ...], str, float, bool]


def make_queue(specs: Sequence[JobSpec]) -> list[QueuedJob]:
    """Return jobs of these kinds, earliest due first."""
    queue = [make_queued(number, *spec) for number, spec in enumerate(specs)]
    return sorted(queue, key=lambda queued: queued.due)
