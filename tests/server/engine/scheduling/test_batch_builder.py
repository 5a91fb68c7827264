"""Batches that are cut many jobs at a time are those that are cut job by job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.batch_builder import (
    BatchBuilder,
    Bounds,
    Option,
    QueuedJob,
    QueueForecast,
    in_stretches,
    next_batch,
)
from server.ipc.messages import Job
from server.latency.cost import NOTHING, Estimate, Features, Geometry, Recorded
from tome_core.cost import BlockCost, Cost
from tome_core.schedule import Schedule

GEOMETRY = Geometry(
    197, 1, 12, Cost(116_000_000, (BlockCost(2_359_296, 4_718_592, 1_536, 64),) * 12, prefix=1)
)
LEVELS = tuple(Schedule.constant(r) for r in (0, 4, 8, 12, 16))
RECORDED = Recorded(frozenset(map(GEOMETRY.load, LEVELS)), (1, 2, 4, 8, 12, 16))
GPU = Features(0.001, 0.0004, 0.0, 0.0006, 0.0001, 0.00001, 0.000005, 0.00005, 0.00001, 0.00001)
CPU = Features(
    host=0.005, host_blocks=0.0001, groups=0.0005, tokens=0.0026, pairs=0.0086, merged=0.0002
)
ESTIMATES = (
    Estimate(CPU, contention=1.2, margin=0.1, recorded=NOTHING),
    Estimate(GPU, contention=1.1, delay=0.0005, margin=0.05, recorded=RECORDED),
    Estimate(GPU, margin=0.2, recorded=replace(RECORDED, any=True)),
)
CHOICES = (LEVELS, LEVELS[:3], LEVELS[:1], LEVELS[2:3], LEVELS[4:], (Schedule.constant(3),))


@cache
def options(model: str, choices: tuple[Schedule, ...]) -> tuple[Option, ...]:
    return tuple(Option(one, GEOMETRY.relative(one), GEOMETRY.load(one)) for one in choices)


def queue_of(jobs: Sequence[tuple[tuple[Schedule, ...], str, float, bool]]) -> list[QueuedJob]:
    """Of jobs by their choices, model, when they are due, and whether that binds."""
    queue = [
        QueuedJob(Job(number, 0, model, choices, 1, 0.0), options(model, choices), due, binding)
        for number, (choices, model, due, binding) in enumerate(jobs)
    ]
    return sorted(queue, key=lambda waiting: waiting.due)


def one_by_one(
    queue: Sequence[QueuedJob],
    limits: Sequence[float],
    bounds: Bounds,
    estimate: Estimate,
    reserve: float,
) -> tuple[list[float], int]:
    """When each job will be done, and how many are in the first batch."""
    done: list[float] = []
    cutter = BatchBuilder(bounds, 0.0)
    stretch = 1.0
    first = 0
    for waiting, limit in zip(queue, limits, strict=True):
        if not cutter.takes(waiting, waiting.under(limit), estimate):
            first = first or len(done) + cutter.images
            done += [cutter.start + cutter.seconds * stretch] * cutter.images
            cutter = BatchBuilder(bounds, done[-1])
            stretch = 1.0 + reserve
            assert cutter.takes(waiting, waiting.under(limit), estimate)
    done += [cutter.start + cutter.seconds * stretch] * cutter.images
    return done, first or len(done)


# Neighbours are often alike, as in a real queue.
JOBS = st.lists(
    st.tuples(
        st.sampled_from(CHOICES),
        st.sampled_from("aaab"),
        st.floats(0, 0.2),
        st.booleans(),
        st.integers(1, 24),
    ),
    min_size=1,
    max_size=8,
).map(
    lambda runs: [
        (choices, model, due, binding) for choices, model, due, binding, n in runs for _ in range(n)
    ]
)
BOUNDS = st.builds(Bounds, st.integers(1, 20), st.sampled_from([float("inf"), 0.5, 3.7, 9.1]))
LIMITS = st.tuples(
    st.sampled_from([0.0, 0.6, 0.8, 1.0]), st.sampled_from([0.7, 1.0]), st.integers(0, 60)
)


@given(JOBS, BOUNDS, LIMITS, st.sampled_from(ESTIMATES), st.sampled_from([0.0, 1.0]))
def test_the_future_is_that_of_jobs_one_by_one(
    jobs: list[tuple[tuple[Schedule, ...], str, float, bool]],
    bounds: Bounds,
    change: tuple[float, float, int],
    estimate: Estimate,
    reserve: float,
) -> None:
    queue = queue_of(jobs)
    before, after, edge = change
    limits = [before if position < edge else after for position in range(len(queue))]
    expected, images = one_by_one(queue, limits, bounds, estimate, reserve)
    future = QueueForecast(queue, 0.0, bounds, lambda model: estimate, reserve)
    stretches = in_stretches(limits)
    done = future.done(stretches)
    assert done == pytest.approx(expected)
    assert future.first(stretches) == images
    assert future.late(done) == [
        place for place, waiting in enumerate(queue) if done[place] > waiting.due
    ]


@given(JOBS, BOUNDS, st.sampled_from(ESTIMATES))
def test_the_next_batch_is_that_of_jobs_one_by_one(
    jobs: list[tuple[tuple[Schedule, ...], str, float, bool]], bounds: Bounds, estimate: Estimate
) -> None:
    queue = queue_of([(choices, "a", due, binding) for choices, _, due, binding in jobs])
    limits = [0.8] * len(queue)
    _, images = one_by_one(queue, limits, bounds, estimate, 0.0)
    batch = next_batch(queue, limits, 0.0, bounds, lambda model: estimate)
    assert batch == [waiting.under(0.8) for waiting in queue[:images]]


def test_limits_are_told_in_stretches() -> None:
    assert list(in_stretches([])) == []
    assert list(in_stretches([0.5, 0.5, 1.0])) == [(2, 0.5), (3, 1.0)]
