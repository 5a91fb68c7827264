"""The forecast of a queue: batches found by counting are those that are built job by job."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.batch_builder import BatchBuilder, Bounds, QueuedJob
from server.engine.scheduling.queue_forecast import QueueForecast, next_batch, to_segments
from server.latency.cost import CostModel
from tests.server.engine.scheduling.queues import ESTIMATES, LEVELS, JobSpec, make_queue
from tome_core.schedule import Schedule

CHOICES = (
    LEVELS,
    LEVELS[:3],
    LEVELS[:1],
    LEVELS[2:3],
    LEVELS[4:],
    (Schedule.constant(3),),
)


def forecast_job_by_job(
    queue: Sequence[QueuedJob],
    limits: Sequence[float],
    bounds: Bounds,
    cost_model: CostModel,
    reserve: float,
) -> tuple[list[float], int]:
    """Return when each job finishes, and how many jobs the first batch has."""
    finish_times: list[float] = []
    builder = BatchBuilder(bounds, 0.0)
    stretch = 1.0
    first = 0
    for queued, limit in zip(queue, limits, strict=True):
        option = queued.option_within(limit)
        if not builder.try_add(queued, option, cost_model):
            first = first or builder.images
            finish_times += [builder.start + builder.seconds * stretch] * builder.images
            builder = BatchBuilder(bounds, finish_times[-1])
            stretch = 1.0 + reserve
            assert builder.try_add(queued, option, cost_model)
    finish_times += [builder.start + builder.seconds * stretch] * builder.images
    return finish_times, first or len(finish_times)


def repeat(runs: Sequence[tuple[JobSpec, int]]) -> list[JobSpec]:
    return [spec for spec, count in runs for _ in range(count)]


SPECS = st.tuples(
    st.sampled_from(CHOICES),
    st.sampled_from("aaab"),
    st.floats(0, 0.2),
    st.booleans(),
)
# Neighbours are often alike, as in a real queue.
QUEUES = st.lists(st.tuples(SPECS, st.integers(1, 24)), min_size=1, max_size=8).map(repeat)
BOUNDS = st.builds(Bounds, st.integers(1, 20), st.sampled_from([float("inf"), 0.5, 3.7, 9.1]))
# The limit up to a position, the limit from there on, and the position.
LIMITS = st.tuples(
    st.sampled_from([0.0, 0.6, 0.8, 1.0]),
    st.sampled_from([0.7, 1.0]),
    st.integers(0, 60),
)


@given(QUEUES, BOUNDS, LIMITS, st.sampled_from(ESTIMATES), st.sampled_from([0.0, 1.0]))
def test_the_forecast_is_that_of_jobs_one_by_one(
    specs: list[JobSpec],
    bounds: Bounds,
    change: tuple[float, float, int],
    cost_model: CostModel,
    reserve: float,
) -> None:
    queue = make_queue(specs)
    before, after, edge = change
    limits = [before if position < edge else after for position in range(len(queue))]
    expected, first_batch = forecast_job_by_job(queue, limits, bounds, cost_model, reserve)
    forecast = QueueForecast(queue, 0.0, bounds, lambda model: cost_model, reserve)
    segments = to_segments(limits)
    finish_times = forecast.finish_times(segments)
    assert finish_times == pytest.approx(expected)
    assert forecast.first_batch_size(segments) == first_batch
    late = [
        position for position, queued in enumerate(queue) if finish_times[position] > queued.due
    ]
    assert forecast.late_positions(finish_times) == late


@given(QUEUES, BOUNDS, st.sampled_from(ESTIMATES))
def test_the_next_batch_is_that_of_jobs_one_by_one(
    specs: list[JobSpec],
    bounds: Bounds,
    cost_model: CostModel,
) -> None:
    queue = make_queue(
        [(choices, "a", due, due_is_binding) for choices, _, due, due_is_binding in specs]
    )
    limits = [0.8] * len(queue)
    _, first_batch = forecast_job_by_job(queue, limits, bounds, cost_model, reserve=0.0)
    batch = next_batch(queue, limits, 0.0, bounds, lambda model: cost_model)
    assert batch == [queued.option_within(0.8) for queued in queue[:first_batch]]


def test_equal_neighbouring_limits_become_segments() -> None:
    assert to_segments([]) == []
    assert to_segments([0.5, 0.5, 1.0]) == [(2, 0.5), (3, 1.0)]
