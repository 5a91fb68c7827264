"""The scheduler: the order of jobs, bounds of batches, deadlines, and cancellation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.scheduler import TakenJobs
from tests.server.engine.scheduling.made_up_models import (
    LEVELS,
    MadeUpModel,
    job_ids,
    make_job,
    make_scheduler,
    relative_flops,
)
from tome_core.schedule import Schedule


def test_a_job_does_not_wait_for_a_fuller_batch() -> None:
    assert job_ids(make_scheduler(make_job(1)).take_next(0.0).batch) == [1]


def test_a_batch_is_bounded_and_the_rest_stays_queued() -> None:
    scheduler = make_scheduler(*(make_job(number, submitted=number) for number in range(6)))
    assert job_ids(scheduler.take_next(0.0).batch) == [0, 1, 2, 3]
    assert job_ids(scheduler.take_next(0.0).batch) == [4, 5]
    assert len(scheduler) == 0


def test_a_batch_is_filled_across_schedules_up_to_its_bound_of_work() -> None:
    # An image is 1 unit of work at r=0, and 0.2 units at r=16.
    jobs = []
    for number in range(9):
        choices = LEVELS[-1:] if number % 2 else LEVELS[:1]
        jobs.append(make_job(number, submitted=number, choices=choices))
    scheduler = make_scheduler(*jobs, max_batch=10, max_r0_images=3.5)
    # 3 units at r=0 and 0.4 at r=16; the next image at r=16 exceeds 3.5.
    assert job_ids(scheduler.take_next(0.0).batch) == [0, 1, 2, 3, 4]
    assert job_ids(scheduler.take_next(0.0).batch) == [5, 6, 7, 8]
    assert len(scheduler) == 0


def test_a_job_of_more_work_than_a_batch_may_have_runs_alone() -> None:
    scheduler = make_scheduler(make_job(1), make_job(2), max_batch=10, max_r0_images=0.5)
    assert job_ids(scheduler.take_next(0.0).batch) == [1]
    assert job_ids(scheduler.take_next(0.0).batch) == [2]


def test_the_earliest_deadline_goes_first() -> None:
    jobs = [make_job(1, 0.0), make_job(2, 0.5, deadline=0.9), make_job(3, 0.1)]
    scheduler = make_scheduler(*jobs, max_batch=2)
    assert job_ids(scheduler.take_next(0.6).batch) == [2, 1]


def test_a_job_without_a_deadline_is_not_overtaken_forever() -> None:
    scheduler = make_scheduler(make_job(0, submitted=0.0), max_batch=1, target=1.0)
    for number in range(1, 50):
        now = number * 0.1
        scheduler.add(make_job(number, submitted=now, deadline=now + 0.3))
        if job_ids(scheduler.take_next(now).batch) == [0]:
            break
    assert now <= 1.0


def test_a_job_whose_deadline_has_passed_never_runs() -> None:
    taken = make_scheduler(make_job(1, deadline=1.0), make_job(2, deadline=3.0)).take_next(1.0)
    assert job_ids(taken.expired) == [1]
    assert job_ids(taken.batch) == [2]


def test_a_job_without_a_deadline_does_not_expire_at_its_target() -> None:
    scheduler = make_scheduler(make_job(1, submitted=0.0), target=1.0)
    assert job_ids(scheduler.take_next(100.0).batch) == [1]


def test_a_batch_has_one_model_which_is_that_of_the_most_urgent_job() -> None:
    scheduler = make_scheduler(
        make_job(1, 0.0, model="a"),
        make_job(2, 0.1, model="b"),
        make_job(3, 0.2, model="a"),
    )
    assert job_ids(scheduler.take_next(0.0).batch) == [1, 3]
    assert job_ids(scheduler.take_next(0.0).batch) == [2]


def test_a_cancelled_job_leaves_the_queue() -> None:
    scheduler = make_scheduler(make_job(1), make_job(2))
    assert scheduler.cancel(1)
    assert not scheduler.cancel(1)
    assert job_ids(scheduler.take_next(0.0).batch) == [2]


CHOICES = st.sets(st.sampled_from(LEVELS), min_size=1).map(
    lambda levels: tuple(sorted(levels, key=LEVELS.index))
)
JOBS = st.lists(
    st.tuples(
        st.floats(0, 5),
        st.none() | st.floats(0, 10),
        st.sampled_from("ab"),
        st.booleans(),
        CHOICES,
    ),
    max_size=40,
)
MODELS = st.builds(MadeUpModel, st.floats(0, 0.5), st.floats(0, 1))

# Submitted, deadline, model, whether it is cancelled, choices.
GeneratedJob = tuple[float, float | None, str, bool, tuple[Schedule, ...]]


@given(JOBS, st.integers(1, 8), st.floats(0.1, 8), MODELS)
def test_every_job_leaves_the_queue_once_and_every_batch_keeps_its_bounds(
    generated: list[GeneratedJob],
    max_batch: int,
    max_r0_images: float,
    model: MadeUpModel,
) -> None:
    scheduler = make_scheduler(max_batch=max_batch, max_r0_images=max_r0_images, model=model)
    seen = []
    for number, (submitted, deadline, name, cancel, choices) in enumerate(generated):
        scheduler.add(make_job(number, submitted, deadline, name, choices))
        if cancel:
            assert scheduler.cancel(number)
            seen.append(number)
    now = 0.0
    while len(scheduler):
        taken = scheduler.take_next(now)
        assert taken.batch or taken.expired or taken.refused  # the scheduler is work-conserving
        assert_bounds(taken, now, max_batch, max_r0_images)
        seen += job_ids(taken.batch) + job_ids(taken.expired) + job_ids(taken.refused)
        now += 0.7
    assert sorted(seen) == list(range(len(generated)))


def assert_bounds(
    taken: TakenJobs,
    now: float,
    max_batch: int,
    max_r0_images: float,
) -> None:
    assert len(taken.batch) <= max_batch
    assert len({scheduled.job.model for scheduled in taken.batch}) <= 1
    r0_images = 0.0
    for job, schedule, _ in taken.batch:
        assert job.deadline is None or job.deadline > now
        assert schedule in job.choices
        r0_images += relative_flops(schedule)
    assert len(taken.batch) == 1 or r0_images <= max_r0_images + 1e-9
    assert all(job.deadline is not None for job in taken.refused)


@given(
    st.lists(st.tuples(st.sampled_from(LEVELS), st.none() | st.floats(0.01, 3)), min_size=1),
    MODELS,
)
def test_a_job_that_names_a_schedule_gets_exactly_that_whatever_the_others_are(
    named: list[tuple[Schedule, float | None]],
    model: MadeUpModel,
) -> None:
    scheduler = make_scheduler(model=model)
    for number, (schedule, deadline) in enumerate(named):
        scheduler.add(make_job(2 * number, deadline=deadline, choices=(schedule,)))
        scheduler.add(make_job(2 * number + 1, deadline=deadline, choices=LEVELS))
    now = 0.0
    while len(scheduler):
        for job, schedule, _ in scheduler.take_next(now).batch:
            if job.id % 2 == 0:
                expected, _ = named[job.id // 2]
                assert schedule == expected
        now += 0.3
