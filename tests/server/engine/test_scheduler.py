from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduler import Scheduler
from server.messages import Job
from tome_core.schedule import Schedule


def job(number: int, submitted: float = 0.0, deadline: float | None = None, model: str = "m") -> Job:
    return Job(number, number, model, Schedule.constant(0), 1, submitted, deadline)


def scheduler(*jobs: Job, max_batch: int = 4, target: float = 1.0) -> Scheduler:
    made = Scheduler(max_batch, target)
    for one in jobs:
        made.add(one)
    return made


def ids(jobs: tuple[Job, ...]) -> list[int]:
    return [one.id for one in jobs]


def test_nothing_waits_for_a_fuller_batch() -> None:
    assert ids(scheduler(job(1)).step(0.0).batch) == [1]


def test_a_batch_is_bounded_and_the_rest_stays() -> None:
    made = scheduler(*(job(i, submitted=i) for i in range(6)))
    assert ids(made.step(0.0).batch) == [0, 1, 2, 3]
    assert ids(made.step(0.0).batch) == [4, 5]
    assert len(made) == 0


def test_a_batch_is_filled_across_schedules_up_to_an_amount_of_work() -> None:
    made = Scheduler(max_batch=10, target_seconds=1.0, max_work=4.0, work=lambda one: 1.0 if one.id % 2 else 0.5)
    for number in range(9):
        made.add(job(number, submitted=number))
    assert ids(made.step(0.0).batch) == [0, 1, 2, 3, 4]  # 0.5 + 1 + 0.5 + 1 + 0.5, and 1 more would be too much
    assert ids(made.step(0.0).batch) == [5, 6, 7, 8]
    assert len(made) == 0


def test_a_job_of_more_work_than_a_batch_may_have_runs_alone() -> None:
    made = Scheduler(max_batch=10, target_seconds=1.0, max_work=0.5)
    made.add(job(1))
    made.add(job(2))
    assert [ids(made.step(0.0).batch) for _ in range(2)] == [[1], [2]]


def test_the_earliest_deadline_goes_first() -> None:
    made = scheduler(job(1, 0.0), job(2, 0.5, deadline=0.9), job(3, 0.1), max_batch=2)
    assert ids(made.step(0.6).batch) == [2, 1]


def test_a_job_without_a_deadline_is_not_overtaken_for_ever() -> None:
    made = scheduler(job(0, submitted=0.0), max_batch=1, target=1.0)
    for number in range(1, 50):
        made.add(job(number, submitted=number * 0.1, deadline=number * 0.1 + 0.3))
        if ids(made.step(number * 0.1).batch) == [0]:
            break
    assert number * 0.1 <= 1.0


def test_a_job_whose_deadline_has_passed_never_runs() -> None:
    step = scheduler(job(1, deadline=1.0), job(2, deadline=3.0)).step(1.0)
    assert (ids(step.expired), ids(step.batch)) == ([1], [2])


def test_the_target_of_a_job_without_a_deadline_does_not_expire_it() -> None:
    assert ids(scheduler(job(1, submitted=0.0), target=1.0).step(100.0).batch) == [1]


def test_a_batch_has_one_model_that_of_the_most_urgent() -> None:
    made = scheduler(job(1, 0.0, model="a"), job(2, 0.1, model="b"), job(3, 0.2, model="a"))
    assert ids(made.step(0.0).batch) == [1, 3]
    assert ids(made.step(0.0).batch) == [2]


def test_a_cancelled_job_is_gone() -> None:
    made = scheduler(job(1), job(2))
    assert made.cancel(1)
    assert not made.cancel(1)
    assert ids(made.step(0.0).batch) == [2]


jobs = st.lists(
    st.tuples(st.floats(0, 5), st.none() | st.floats(0, 10), st.sampled_from("ab"), st.booleans()), max_size=40
)


@given(jobs, st.integers(1, 8))
def test_every_job_is_run_expired_or_cancelled_exactly_once(given_jobs: list[tuple], max_batch: int) -> None:  # type: ignore[type-arg]
    made = scheduler(max_batch=max_batch)
    seen = []
    for number, (submitted, deadline, model, cancel) in enumerate(given_jobs):
        made.add(job(number, submitted, deadline, model))
        if cancel:
            assert made.cancel(number)
            seen.append(number)
    now = 0.0
    while len(made):
        step = made.step(now)
        assert len(step.batch) <= max_batch
        assert len({one.model for one in step.batch}) <= 1
        assert all(one.deadline is None or one.deadline > now for one in step.batch)
        seen += ids(step.batch) + ids(step.expired)
        now += 0.7
    assert sorted(seen) == list(range(len(given_jobs)))
