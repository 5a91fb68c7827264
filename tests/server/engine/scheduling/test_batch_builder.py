"""The batch builder: bounds, deadlines, models, and padding of CUDA graphs."""

from __future__ import annotations

import pytest

from server.engine.scheduling.batch_builder import BatchBuilder, BatchCost, Bounds, QueuedJob
from server.latency.cost import CostModel, batch_features
from tests.server.engine.scheduling.queues import (
    GEOMETRY,
    LEVELS,
    ON_CPU,
    ON_GPU,
    ON_GPU_WITH_ANY_MIX,
    make_queued,
    option_of,
    options_of,
)

EXACT = option_of(LEVELS[0])
FAST = option_of(LEVELS[-1])


def count_joining(builder: BatchBuilder, jobs: list[QueuedJob], cost_model: CostModel) -> int:
    """Add ``jobs`` until one does not join, and return how many joined."""
    for count, queued in enumerate(jobs):
        if not builder.try_add(queued, queued.options[0], cost_model):
            return count
    return len(jobs)


def batch_seconds(images: int, cost_model: CostModel) -> float:
    """Return the seconds of a batch at r=0, with the margin."""
    return cost_model.uniform_batch_seconds(EXACT.image_cost, images) * (1 + cost_model.margin)


def test_a_batch_ends_at_its_bound_of_images() -> None:
    jobs = [make_queued(number) for number in range(8)]
    assert count_joining(BatchBuilder(Bounds(5), 0.0), jobs, ON_CPU) == 5


def test_a_batch_ends_at_its_bound_of_work_but_has_one_job() -> None:
    jobs = [make_queued(number) for number in range(8)]
    assert count_joining(BatchBuilder(Bounds(8, 3.5), 0.0), jobs, ON_CPU) == 3
    assert count_joining(BatchBuilder(Bounds(8, 0.5), 0.0), jobs, ON_CPU) == 1


# The builder neglects what each further group of images costs on a CPU.
WITHOUT_GROUPS = CostModel(ON_CPU.coefficients._replace(groups=0.0), margin=0.1)


@pytest.mark.parametrize("cost_model", [WITHOUT_GROUPS, ON_GPU, ON_GPU_WITH_ANY_MIX])
def test_the_prediction_is_that_of_the_cost_model_with_its_margin(cost_model: CostModel) -> None:
    builder = BatchBuilder(Bounds(20), 0.0)
    schedules = [LEVELS[0]] * 3 + [LEVELS[2]] * 4 + [LEVELS[0]] * 6
    for number, schedule in enumerate(schedules):
        queued = make_queued(number, (schedule,), due_is_binding=False)
        assert builder.try_add(queued, queued.options[0], cost_model)
    image_costs = [GEOMETRY.image_cost(schedule) for schedule in schedules]
    expected = cost_model.seconds(batch_features(image_costs, cost_model.recorded)) * (
        1 + cost_model.margin
    )
    assert builder.seconds == pytest.approx(expected)


def test_a_batch_ends_before_its_first_job_would_be_late() -> None:
    due = (batch_seconds(10, ON_CPU) + batch_seconds(11, ON_CPU)) / 2
    jobs = [make_queued(number, due=due) for number in range(20)]
    assert count_joining(BatchBuilder(Bounds(20), 0.0), jobs, ON_CPU) == 10
    assert count_joining(BatchBuilder(Bounds(20), due), jobs, ON_CPU) == 20  # late even alone


def test_a_due_time_that_is_not_binding_does_not_end_a_batch() -> None:
    due = batch_seconds(10, ON_CPU)
    jobs = [make_queued(number, due=due, due_is_binding=False) for number in range(20)]
    assert count_joining(BatchBuilder(Bounds(20), 0.0), jobs, ON_CPU) == 20


def test_a_batch_that_is_mostly_overhead_does_not_end_at_a_deadline() -> None:
    cheap = CostModel(ON_CPU.coefficients._replace(host=1.0), margin=0.0)
    jobs = [make_queued(number, due=batch_seconds(1, cheap)) for number in range(20)]
    assert count_joining(BatchBuilder(Bounds(20), 0.0), jobs, cheap) == 20


def test_a_job_of_another_model_counts_without_overhead() -> None:
    builder = BatchBuilder(Bounds(20), 0.0)
    first = make_queued(0, due_is_binding=False)
    other = make_queued(1, model="b")
    assert builder.try_add(first, EXACT, ON_CPU)
    alone = builder.seconds
    assert builder.try_add(other, EXACT, ON_CPU)
    added = builder.seconds - alone
    assert added == pytest.approx(ON_CPU.image_seconds(EXACT.image_cost) * (1 + ON_CPU.margin))


def test_padding_is_filled_without_time() -> None:
    builder = BatchBuilder(Bounds(20), 0.0)
    for number in range(9):  # the bucket has 12 images
        assert builder.try_add(make_queued(number), EXACT, ON_GPU)
    seconds = builder.seconds
    assert builder.fill_padding(EXACT, available=2) == 2
    assert builder.fill_padding(EXACT, available=7) == 1
    assert builder.fill_padding(EXACT, available=7) == 0
    assert builder.images == 12
    assert builder.r0_images == pytest.approx(12)
    assert builder.seconds == seconds


def test_padding_is_not_filled_beyond_the_bounds_or_by_other_schedules() -> None:
    builder = BatchBuilder(Bounds(images=11, max_r0_images=10.5), 0.0)
    for number in range(9):
        assert builder.try_add(make_queued(number), EXACT, ON_GPU)
    assert builder.fill_padding(FAST, available=1) == 0
    assert builder.fill_padding(EXACT, available=2) == 0  # 11 images at r=0
    assert builder.fill_padding(EXACT, available=1) == 1


def test_without_cuda_graphs_there_is_no_padding() -> None:
    builder = BatchBuilder(Bounds(20), 0.0)
    assert builder.try_add(make_queued(0), EXACT, ON_CPU)
    assert builder.fill_padding(EXACT, available=5) == 0


def test_the_overhead_of_a_batch_does_not_grow_with_alike_images() -> None:
    one = BatchCost().with_image(EXACT.image_cost, ON_CPU)
    two = one.with_image(EXACT.image_cost, ON_CPU)
    assert one.overhead > 0
    assert two.overhead == pytest.approx(one.overhead)
    assert two.image_cost == EXACT.image_cost
    assert two.with_image(FAST.image_cost, ON_CPU).image_cost is None


def test_the_option_within_a_limit_merges_least() -> None:
    queued = make_queued(0, LEVELS)
    options = options_of("a", LEVELS)
    assert queued.option_within(1.0) is options[0]
    assert queued.option_within(options[2].relative_flops) is options[2]
    assert queued.option_within(options[2].relative_flops + 1e-6) is options[2]
    assert queued.option_within(0.0) is options[-1]
