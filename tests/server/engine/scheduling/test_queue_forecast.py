"""The forecast of a queue: the batches of the queue model, one model after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.queue_forecast import QueuedJob, QueueForecast
from server.latency.cost import CostModel
from server.latency.queue_model import Bounds, ModelQueue
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


def forecast_batch_by_batch(
    queue: Sequence[QueuedJob],
    limit: float,
    bounds: Bounds,
    cost_model: CostModel,
    reserve: float,
) -> list[float]:
    """Return when each job finishes; before each batch the rest of the queue is looked at anew."""
    finish_times = [math.inf] * len(queue)
    start = 0.0
    stretch = 1.0
    while math.inf in finish_times:
        rest = [position for position, end in enumerate(finish_times) if end == math.inf]
        model = queue[rest[0]].job.model
        of_model = [position for position in rest if queue[position].job.model == model]
        options = [queue[position].option_within(limit) for position in of_model]
        image_costs = [option.image_cost for option in options]
        due = [queue[position].binding_due for position in of_model]
        model_queue = ModelQueue(image_costs, due, bounds, cost_model)
        start += model_queue.take_batch(start) * stretch
        stretch = 1.0 + reserve
        for position in of_model[: model_queue.taken]:
            finish_times[position] = start
    return finish_times


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
LIMITS = st.sampled_from([0.0, 0.6, 0.8, 1.0])


@given(QUEUES, BOUNDS, LIMITS, st.sampled_from(ESTIMATES), st.sampled_from([0.0, 1.0]))
def test_the_forecast_is_that_of_batches_one_by_one(
    specs: list[JobSpec],
    bounds: Bounds,
    limit: float,
    cost_model: CostModel,
    reserve: float,
) -> None:
    queue = make_queue(specs)
    expected = forecast_batch_by_batch(queue, limit, bounds, cost_model, reserve)
    forecast = QueueForecast(queue, 0.0, bounds, lambda model: cost_model, reserve)
    late = [
        position for position, queued in enumerate(queue) if expected[position] > queued.binding_due
    ]
    assert sorted(forecast.late_positions(limit)) == late
    assert forecast.is_late(limit) == bool(late)
