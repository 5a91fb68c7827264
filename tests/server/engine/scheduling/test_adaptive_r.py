"""Adaptive r in the scheduler: jobs that leave r to the engine.

An image takes 0.1 s at r=0, 0.08 s at 4, 0.06 s at 8, and 0.02 s at 16.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.engine.scheduling.adaptive_r import AdaptiveR, candidate_limits
from server.engine.scheduling.options import Option, useful_options
from server.engine.scheduling.queue_forecast import QueuedJob
from server.engine.scheduling.scheduler import Scheduler
from server.ipc.messages import Job, SecondPass
from server.latency.cost import CostFeatures, CostModel, ImageCost
from tests.server.engine.scheduling.made_up_models import (
    LEVELS,
    MadeUpModel,
    job_ids,
    make_job,
    make_scheduler,
    used_r,
)
from tome_core.schedule import Schedule


def make_queue(count: int, deadline: float | None, **settings: object) -> Scheduler:
    """Return a scheduler with ``count`` equal jobs that allow all levels."""
    jobs = [make_job(number, deadline=deadline, choices=LEVELS) for number in range(count)]
    return make_scheduler(*jobs, **settings)  # type: ignore[arg-type]


def first_r(count: int, deadline: float | None, **settings: object) -> list[int]:
    """Return the r of each job in the first batch of `make_queue`."""
    return used_r(make_queue(count, deadline, **settings).take_next(0.0).batch)


def test_with_enough_time_nothing_merges() -> None:
    assert first_r(4, deadline=0.41) == [0] * 4


@pytest.mark.parametrize(("deadline", "r"), [(0.33, 4), (0.25, 8), (0.09, 16)])
def test_r_is_the_smallest_with_which_all_jobs_are_in_time(deadline: float, r: int) -> None:
    assert first_r(4, deadline) == [r] * 4


def test_jobs_behind_the_first_batch_count() -> None:
    assert first_r(8, deadline=1.25, max_batch=4) == [0] * 4
    assert first_r(16, deadline=1.0, max_batch=4) == [16] * 4


def test_predictions_count_with_their_margin() -> None:
    assert first_r(4, deadline=0.41, model=MadeUpModel(margin=0.2)) == [4] * 4


def test_without_a_deadline_the_target_is_met() -> None:
    assert first_r(4, deadline=None, target=0.25) == [8] * 4


def test_a_target_that_no_r_can_meet_is_missed_by_as_little_as_possible() -> None:
    scheduler = make_queue(8, deadline=None, target=0.05)
    assert used_r(scheduler.take_next(10.0).batch) == [16] * 4


def test_only_jobs_up_to_the_last_that_needs_it_merge_more() -> None:
    tight = [make_job(number, deadline=0.15, choices=LEVELS) for number in (1, 5)]
    loose = [make_job(number, deadline=5.0, choices=LEVELS) for number in (2, 3, 4)]
    scheduler = make_scheduler(*loose, *tight, model=MadeUpModel(overhead=0.001))
    # The two jobs run by themselves: with another one they would be late.
    assert used_r(scheduler.take_next(0.0).batch) == [8, 8]
    assert used_r(scheduler.take_next(0.13 + AdaptiveR().relax_seconds).batch) == [0, 0, 0]


def test_a_job_that_allows_fewer_levels_merges_as_much_as_it_allows() -> None:
    bounded = make_job(1, deadline=0.3, choices=LEVELS[:2])
    free = [make_job(number, deadline=0.3, choices=LEVELS) for number in (2, 3, 4)]
    assert used_r(make_scheduler(bounded, *free).take_next(0.0).batch) == [4, 8, 8, 8]


def test_jobs_that_name_r_take_their_time_and_keep_their_r() -> None:
    named = [make_job(number, deadline=0.35) for number in (1, 2)]
    free = [make_job(number, deadline=0.35, choices=LEVELS) for number in (3, 4)]
    assert used_r(make_scheduler(*named, *free).take_next(0.0).batch) == [0, 0, 8, 8]


def test_a_job_is_refused_if_the_batch_in_flight_leaves_no_time_for_it() -> None:
    assert job_ids(make_queue(1, deadline=0.15).take_next(0.0, start=0.0).batch) == [0]
    taken = make_queue(1, deadline=0.15).take_next(0.0, start=0.14)
    assert job_ids(taken.batch) == []
    assert job_ids(taken.refused) == [0]


def test_a_job_that_no_r_can_finish_in_time_is_refused_at_once() -> None:
    taken = make_queue(3, deadline=0.05).take_next(0.0)
    assert job_ids(taken.batch) == [0, 1]
    assert job_ids(taken.refused) == [2]


def test_no_job_merges_for_one_that_is_late_anyway() -> None:
    late = make_job(0, deadline=0.05)
    others = [make_job(number, deadline=2.0, choices=LEVELS) for number in (1, 2)]
    taken = make_scheduler(late, *others).take_next(0.0)
    assert used_r(taken.batch) == [0, 0]
    assert job_ids(taken.refused) == [0]


def test_an_estimate_that_is_too_high_does_not_refuse_all_jobs_forever() -> None:
    model = MadeUpModel()
    model.cost_model = replace(model.cost_model, contention=100.0)
    taken = make_queue(3, deadline=0.1, model=model).take_next(0.0)
    assert job_ids(taken.batch) == [0]
    assert job_ids(taken.refused) == [1, 2]
    # With a deadline that an undisturbed machine cannot meet either, no job needs to run.
    assert job_ids(make_queue(3, deadline=0.01, model=model).take_next(0.0).refused) == [0, 1, 2]


def test_r_falls_slowly_after_it_was_needed() -> None:
    scheduler = make_queue(4, deadline=0.09)
    assert used_r(scheduler.take_next(0.0).batch) == [16] * 4
    seen = []
    for number in range(10, 20):
        now = (number - 9) * 0.3
        scheduler.add(make_job(number, submitted=now, deadline=now + 5, choices=LEVELS))
        seen += used_r(scheduler.take_next(now).batch)
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == 16
    assert seen[-1] == 0
    assert {4, 8} <= set(seen)


def make_option(r: int, relative_flops: float, tokens: float) -> Option:
    image_cost = ImageCost(tokens, 0.0, 0.0, relative_flops=relative_flops)
    return Option(Schedule.constant(r), image_cost)


def test_options_that_save_no_time_are_left_out() -> None:
    exact = make_option(0, relative_flops=1.0, tokens=10.0)
    useless = make_option(4, relative_flops=0.8, tokens=10.0)
    fast = make_option(16, relative_flops=0.4, tokens=5.0)
    cost_model = CostModel(CostFeatures(tokens=1.0))
    assert useful_options([fast, exact, useless], cost_model, images=8) == (exact, fast)


def test_candidate_limits_are_those_of_jobs_that_leave_r_open() -> None:
    exact = make_option(0, relative_flops=1.0, tokens=10.0)
    middle = make_option(8, relative_flops=0.7, tokens=7.0)
    fast = make_option(16, relative_flops=0.4, tokens=5.0)

    def queued(*options: Option) -> QueuedJob:
        return QueuedJob(make_job(1), options, due=1.0, binding_due=1.0)

    assert candidate_limits([queued(middle)]) == []
    assert candidate_limits([queued(exact, fast), queued(middle), queued(exact)]) == [1.0, 0.4]


def with_second_pass(job: Job, share: float) -> Job:
    """An image of ``job`` runs again at r=0; one that has run so does not."""
    r0 = Schedule.constant(0)
    shares = tuple(0.0 if choice == r0 else share for choice in job.choices)
    return job._replace(second=SecondPass(r0, shares))


def test_second_passes_count_by_their_share() -> None:
    """Four images take 0.4 s at r=0, which never runs twice, and 0.32 + 4 * share * 0.1 s at 4."""

    def used(deadline: float, share: float) -> list[int]:
        jobs = [make_job(number, deadline=deadline, choices=LEVELS) for number in range(4)]
        scheduler = make_scheduler(*(with_second_pass(job, share) for job in jobs))
        return used_r(scheduler.take_next(0.0).batch)

    assert used(0.41, 0.5) == [0] * 4
    assert used(0.33, 0.0) == [4] * 4
    assert used(0.33, 0.2) == [8] * 4  # 0.24 + 0.08
    assert used(0.25, 0.2) == [16] * 4


def test_a_fixed_r_with_second_passes_counts_for_the_others() -> None:
    """Two images at r=16 take 0.04 s, and in second passes 0.2 s by their share."""

    def used(share: float) -> int:
        choices = (Schedule.constant(16),)
        fixed = [make_job(number, deadline=0.21, choices=choices) for number in range(2)]
        job = make_job(9, deadline=0.21, choices=LEVELS)
        scheduler = make_scheduler(*(with_second_pass(each, share) for each in fixed), job)
        return used_r(scheduler.take_next(0.0).batch)[-1]

    assert used(0.0) == 0
    assert used(0.5) == 8  # 0.04 + 0.1 + 0.06


def test_second_passes_refuse_no_job_that_its_first_pass_answers_in_time() -> None:
    job = make_job(0, deadline=0.05, choices=(Schedule.constant(16),))
    scheduler = make_scheduler(with_second_pass(job, 1.0))
    assert job_ids(scheduler.take_next(0.0).batch) == [0]


def test_each_choice_has_its_share() -> None:
    """Four images take 0.32 s at r=4, and 0.24 + 0.4 s at r=8 if all run again."""
    jobs = [make_job(number, deadline=0.33, choices=LEVELS[:3]) for number in range(4)]
    second = SecondPass(Schedule.constant(0), (0.0, 0.0, 1.0))
    scheduler = make_scheduler(*(job._replace(second=second) for job in jobs))
    assert used_r(scheduler.take_next(0.0).batch) == [4] * 4


def test_without_deadlines_no_r_is_chosen_whose_second_passes_cost_more_than_it_saves() -> None:
    jobs = [with_second_pass(make_job(number, choices=LEVELS), 0.9) for number in range(40)]
    assert set(used_r(make_scheduler(*jobs).take_next(0.0).batch)) == {0}
    jobs = [with_second_pass(make_job(number, choices=LEVELS), 0.1) for number in range(40)]
    assert set(used_r(make_scheduler(*jobs).take_next(0.0).batch)) == {16}
