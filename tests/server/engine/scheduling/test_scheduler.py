from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from server.engine.scheduling.adaptive_r import Steady
from server.engine.scheduling.batch_builder import Bounds
from server.engine.scheduling.scheduler import ScheduledJob, Scheduler
from server.ipc.messages import Job
from server.latency.cost import Estimate, Features, Load
from tome_core.schedule import Schedule

LEVELS = tuple(Schedule.constant(r) for r in (0, 4, 8, 16))


class Price:
    """A made-up model: r=0 takes 0.1 s an image, r=16 0.02 s; a batch as such takes nothing."""

    def __init__(self, overhead: float = 0.0, margin: float = 0.0) -> None:
        self.estimate = Estimate(Features(host=overhead, tokens=1.0), margin=margin)

    def load(self, schedule: Schedule) -> Load:
        return Load(self.relative(schedule) / 10, 0.0, 0.0)

    def relative(self, schedule: Schedule) -> float:
        return 1 - 0.05 * schedule.counts[0]


def job(
    number: int,
    submitted: float = 0.0,
    deadline: float | None = None,
    model: str = "m",
    choices: tuple[Schedule, ...] = LEVELS[:1],
) -> Job:
    return Job(number, number, model, choices, 1, submitted, deadline)


def scheduler(
    *jobs: Job,
    max_batch: int = 4,
    target: float = 1.0,
    max_work: float = float("inf"),
    price: Price | None = None,
) -> Scheduler:
    price = price or Price()
    made = Scheduler(Bounds(max_batch, max_work), target, lambda model: price)
    for one in jobs:
        made.add(one)
    return made


def ids(jobs: tuple[Job | ScheduledJob, ...]) -> list[int]:
    return [one.job.id if isinstance(one, ScheduledJob) else one.id for one in jobs]


def used(batch: tuple[ScheduledJob, ...]) -> list[int]:
    return [placed.schedule.counts[0] for placed in batch]


def test_nothing_waits_for_a_fuller_batch() -> None:
    assert ids(scheduler(job(1)).step(0.0).batch) == [1]


def test_a_batch_is_bounded_and_the_rest_stays() -> None:
    made = scheduler(*(job(i, submitted=i) for i in range(6)))
    assert ids(made.step(0.0).batch) == [0, 1, 2, 3]
    assert ids(made.step(0.0).batch) == [4, 5]
    assert len(made) == 0


def test_a_batch_is_filled_across_schedules_up_to_an_amount_of_work() -> None:
    # 1 for an image at r=0, and 0.2 for one at r=16.
    many = [
        job(number, submitted=number, choices=LEVELS[-1:] if number % 2 else LEVELS[:1])
        for number in range(9)
    ]
    made = scheduler(*many, max_batch=10, max_work=3.5)
    assert ids(made.step(0.0).batch) == [
        0,
        1,
        2,
        3,
        4,
    ]  # 3 and two times 0.2; the next one at r=16 would fit no more
    assert ids(made.step(0.0).batch) == [5, 6, 7, 8]
    assert len(made) == 0


def test_a_job_of_more_work_than_a_batch_may_have_runs_alone() -> None:
    made = scheduler(job(1), job(2), max_batch=10, max_work=0.5)
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


CHOICES = st.sets(st.sampled_from(LEVELS), min_size=1).map(
    lambda found: tuple(sorted(found, key=LEVELS.index))
)
jobs = st.lists(
    st.tuples(
        st.floats(0, 5), st.none() | st.floats(0, 10), st.sampled_from("ab"), st.booleans(), CHOICES
    ),
    max_size=40,
)
PRICES = st.builds(Price, st.floats(0, 0.5), st.floats(0, 1))
GivenJobs = list[tuple[float, float | None, str, bool, tuple[Schedule, ...]]]


@given(jobs, st.integers(1, 8), st.floats(0.1, 8), PRICES)
def test_invariants(given_jobs: GivenJobs, max_batch: int, max_work: float, price: Price) -> None:
    """Every job is run, expired, refused or cancelled once, and runs under a schedule that it
    allows.
    """
    made = scheduler(max_batch=max_batch, max_work=max_work, price=price)
    seen = []
    for number, (submitted, deadline, model, cancel, choices) in enumerate(given_jobs):
        made.add(job(number, submitted, deadline, model, choices))
        if cancel:
            assert made.cancel(number)
            seen.append(number)
    now = 0.0
    while len(made):
        step = made.step(now)
        assert step.batch or step.expired or step.refused  # it never waits
        assert len(step.batch) <= max_batch
        assert len({one.job.model for one in step.batch}) <= 1
        assert all(one.job.deadline is None or one.job.deadline > now for one in step.batch)
        assert all(one.schedule in one.job.choices for one in step.batch)
        work = sum(price.relative(one.schedule) for one in step.batch)
        assert len(step.batch) == 1 or work <= max_work + 1e-9
        assert all(one.deadline is not None for one in step.refused)
        seen += ids(step.batch) + ids(step.expired) + ids(step.refused)
        now += 0.7
    assert sorted(seen) == list(range(len(given_jobs)))


@given(
    st.lists(st.tuples(st.sampled_from(LEVELS), st.none() | st.floats(0.01, 3)), min_size=1), PRICES
)
def test_a_request_that_names_an_r_gets_exactly_that(
    named: list[tuple[Schedule, float | None]], price: Price
) -> None:
    """Whatever the others are, and however late all are."""
    made = scheduler(price=price)
    for number, (schedule, deadline) in enumerate(named):
        made.add(job(2 * number, deadline=deadline, choices=(schedule,)))
        made.add(job(2 * number + 1, deadline=deadline, choices=LEVELS))
    now = 0.0
    while len(made):
        for placed in made.step(now).batch:
            if placed.job.id % 2 == 0:
                assert placed.schedule == named[placed.job.id // 2][0]
        now += 0.3


class TestAuto:
    """Jobs that leave r to the engine: 0.1 s an image at r=0, 0.08 at 4, 0.06 at 8, 0.02 at 16."""

    def queue(self, count: int, deadline: float | None, **settings: object) -> Scheduler:
        jobs = [job(number, deadline=deadline, choices=LEVELS) for number in range(count)]
        return scheduler(*jobs, **settings)  # type: ignore[arg-type]

    def test_with_time_enough_it_is_the_exact_model(self) -> None:
        assert used(self.queue(4, deadline=0.41).step(0.0).batch) == [0] * 4

    def test_it_is_the_smallest_with_which_all_are_in_time(self) -> None:
        assert used(self.queue(4, deadline=0.33).step(0.0).batch) == [4] * 4
        assert used(self.queue(4, deadline=0.25).step(0.0).batch) == [8] * 4
        assert used(self.queue(4, deadline=0.09).step(0.0).batch) == [16] * 4

    def test_those_behind_count(self) -> None:
        assert used(self.queue(8, deadline=1.25, max_batch=4).step(0.0).batch) == [0] * 4
        assert used(self.queue(16, deadline=1.0, max_batch=4).step(0.0).batch) == [16] * 4

    def test_a_margin_is_kept(self) -> None:
        assert (
            used(self.queue(4, deadline=0.41, price=Price(margin=0.2)).step(0.0).batch) == [4] * 4
        )

    def test_without_a_deadline_the_target_is_met(self) -> None:
        assert used(self.queue(4, deadline=None, target=0.25).step(0.0).batch) == [8] * 4

    def test_a_target_that_no_r_can_meet_is_missed_by_as_little_as_may_be(self) -> None:
        assert used(self.queue(8, deadline=None, target=0.05).step(10.0).batch) == [16] * 4

    def test_only_those_up_to_the_one_that_needs_it_merge_more(self) -> None:
        tight = [job(n, deadline=0.15, choices=LEVELS) for n in (1, 5)]
        loose = [job(n, deadline=5.0, choices=LEVELS) for n in (2, 3, 4)]
        made = scheduler(*loose, *tight, price=Price(overhead=0.001))
        assert used(made.step(0.0).batch) == [
            8,
            8,
        ]  # by themselves: with another one they would be late
        assert used(made.step(0.13 + Steady().relax).batch) == [0, 0, 0]

    def test_a_job_may_be_bounded(self) -> None:
        mild = job(1, deadline=0.3, choices=LEVELS[:2])
        free = [job(n, deadline=0.3, choices=LEVELS) for n in (2, 3, 4)]
        assert used(scheduler(mild, *free).step(0.0).batch) == [4, 8, 8, 8]

    def test_named_ones_are_counted_and_left_alone(self) -> None:
        named = [job(n, deadline=0.35) for n in (1, 2)]
        free = [job(n, deadline=0.35, choices=LEVELS) for n in (3, 4)]
        assert used(scheduler(*named, *free).step(0.0).batch) == [0, 0, 8, 8]

    def test_what_a_batch_in_flight_leaves_no_time_for_is_refused(self) -> None:
        assert ids(self.queue(1, deadline=0.15).step(0.0, start=0.0).batch) == [0]
        step = self.queue(1, deadline=0.15).step(0.0, start=0.14)
        assert (ids(step.batch), ids(step.refused)) == ([], [0])

    def test_what_no_r_can_do_in_time_is_refused_at_once(self) -> None:
        step = self.queue(3, deadline=0.05).step(0.0)
        assert (ids(step.batch), ids(step.refused)) == ([0, 1], [2])

    def test_nobody_merges_for_one_that_is_late_anyway(self) -> None:
        late = job(0, deadline=0.05)
        others = [job(n, deadline=2.0, choices=LEVELS) for n in (1, 2)]
        step = scheduler(late, *others).step(0.0)
        assert (used(step.batch), ids(step.refused)) == ([0, 0], [0])

    def test_an_estimate_that_is_too_high_does_not_refuse_for_ever(self) -> None:
        price = Price()
        price.estimate = replace(price.estimate, contention=100.0)
        step = self.queue(3, deadline=0.1, price=price).step(0.0)
        assert (ids(step.batch), ids(step.refused)) == ([0], [1, 2])
        assert ids(self.queue(3, deadline=0.01, price=price).step(0.0).refused) == [0, 1, 2]

    def test_what_was_needed_is_given_up_slowly(self) -> None:
        made = self.queue(4, deadline=0.09)
        assert used(made.step(0.0).batch) == [16] * 4
        seen = []
        for number in range(10, 20):
            now = (number - 9) * 0.3
            made.add(job(number, submitted=now, deadline=now + 5, choices=LEVELS))
            seen += used(made.step(now).batch)
        assert seen == sorted(seen, reverse=True)
        assert (seen[0], seen[-1]) == (16, 0)
        assert {4, 8} <= set(seen)
