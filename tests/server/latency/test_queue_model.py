"""The queue model: bounds, deadlines, and the seconds of batches."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.latency.cost import CostModel, ImageCost, batch_features
from server.latency.queue_model import Bounds, ModelQueue
from tests.server.engine.scheduling.queues import (
    ESTIMATES,
    GEOMETRY,
    LEVELS,
    ON_CPU,
    ON_GPU,
    ON_GPU_WITH_ANY_MIX,
)

EXACT = GEOMETRY.image_cost(LEVELS[0])
FAST = GEOMETRY.image_cost(LEVELS[-1])
NEVER = math.inf


def first_batch(
    image_costs: list[ImageCost],
    cost_model: CostModel,
    bounds: Bounds,
    due: float = NEVER,
) -> tuple[int, float]:
    """Return the images and the seconds of the first batch, whose images are all due at ``due``."""
    queue = ModelQueue(image_costs, [due] * len(image_costs), bounds, cost_model)
    seconds = queue.take_batch(0.0)
    return queue.taken, seconds


def batch_seconds(images: int, cost_model: CostModel) -> float:
    """Return the seconds of a batch at r=0, with the margin."""
    return cost_model.uniform_batch_seconds(EXACT, images) * (1 + cost_model.margin)


def test_a_batch_ends_at_its_bound_of_images() -> None:
    assert first_batch([EXACT] * 8, ON_CPU, Bounds(5)) == (5, batch_seconds(5, ON_CPU))


def test_a_batch_ends_at_its_bound_of_work_but_has_one_image() -> None:
    assert first_batch([EXACT] * 8, ON_CPU, Bounds(8, 3.5))[0] == 3
    assert first_batch([EXACT] * 8, ON_CPU, Bounds(8, 0.5))[0] == 1
    room_for_two_more = Bounds(8, 1 + 2.5 * FAST.relative_flops)
    assert first_batch([EXACT, *[FAST] * 7], ON_CPU, room_for_two_more)[0] == 3


# The model neglects what each further group of images costs on a CPU.
WITHOUT_GROUPS = CostModel(ON_CPU.coefficients._replace(groups=0.0), margin=0.1)


@pytest.mark.parametrize("cost_model", [WITHOUT_GROUPS, ON_GPU, ON_GPU_WITH_ANY_MIX])
@given(st.lists(st.sampled_from(LEVELS), min_size=1, max_size=20))
def test_the_prediction_is_that_of_the_cost_model_with_its_margin(cost_model, schedules) -> None:
    image_costs = [GEOMETRY.image_cost(schedule) for schedule in schedules]
    whole = cost_model.seconds(batch_features(image_costs, cost_model.recorded))
    images, seconds = first_batch(image_costs, cost_model, Bounds(20))
    assert images == len(image_costs)
    assert seconds == pytest.approx(whole * (1 + cost_model.margin))


def test_a_batch_ends_before_its_first_image_would_be_late() -> None:
    due = (batch_seconds(10, ON_CPU) + batch_seconds(11, ON_CPU)) / 2
    assert first_batch([EXACT] * 20, ON_CPU, Bounds(20), due)[0] == 10
    late_even_alone = batch_seconds(1, ON_CPU) / 2
    assert first_batch([EXACT] * 20, ON_CPU, Bounds(20), late_even_alone)[0] == 20


def test_a_batch_that_is_mostly_overhead_does_not_end_at_a_deadline() -> None:
    costly = CostModel(ON_CPU.coefficients._replace(host=1.0), margin=0.0)
    assert first_batch([EXACT] * 20, costly, Bounds(20), batch_seconds(1, costly))[0] == 20


def test_an_image_that_would_take_the_batch_its_graph_does_not_join_if_the_first_was_late() -> None:
    alike = batch_seconds(8, ON_GPU)
    mixed = [EXACT] * 8 + [FAST]
    assert first_batch(mixed, ON_GPU, Bounds(9), 1.1 * alike) == (8, alike)
    assert first_batch(mixed, ON_GPU, Bounds(9))[0] == 9


SEGMENTS = st.lists(st.tuples(st.sampled_from(LEVELS), st.integers(1, 24)), min_size=1, max_size=6)
BOUNDS = st.builds(Bounds, st.integers(1, 20), st.sampled_from([math.inf, 0.5, 3.7, 9.1]))


@given(SEGMENTS, BOUNDS, st.sampled_from(ESTIMATES), st.floats(0, 0.2))
def test_every_image_has_one_batch_that_keeps_its_bounds_and_its_deadline_if_it_was_cut(
    segments, bounds: Bounds, cost_model: CostModel, due: float
) -> None:
    image_costs = [GEOMETRY.image_cost(one) for one, count in segments for _ in range(count)]
    queue = ModelQueue(image_costs, [due] * len(image_costs), bounds, cost_model)
    without_due = ModelQueue(image_costs, [NEVER] * len(image_costs), bounds, cost_model)
    while queue:
        begin = queue.taken
        seconds = queue.take_batch(0.0)
        batch = image_costs[begin : queue.taken]
        assert 1 <= len(batch) <= bounds.images
        r0_images = sum(image_cost.relative_flops for image_cost in batch)
        assert len(batch) == 1 or r0_images <= bounds.max_r0_images + 1e-6
        without_due.taken = begin
        full_seconds = without_due.take_batch(0.0)
        full = without_due.taken - begin
        assert len(batch) <= full
        if len(batch) < full:
            assert seconds / len(batch) <= 1.25 * full_seconds / full + 1e-9
