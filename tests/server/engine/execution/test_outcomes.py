"""The outcome of each job of a batch: predictions, failures, and token counts."""

from __future__ import annotations

from server.engine.execution.image_output import ImageOutput
from server.engine.execution.isolation import IsolationResult
from server.engine.execution.outcomes import batch_failures, outcomes, token_counts
from server.engine.execution.runner import Runner
from server.engine.scheduling.scheduler import ScheduledJob
from server.ipc.messages import Failure, Job, Outcome
from server.latency.cost import ImageCost
from tome_core.schedule import Schedule

EXACT = Schedule.constant(0)
FAST = Schedule.constant(4)
GOOD = ImageOutput((0.9, 0.1), (2, 0), finite=True)
WITH_NAN = ImageOutput((float("nan"),), (0,), finite=False)


def scheduled(number: int, schedule: Schedule) -> ScheduledJob:
    job = Job(number, number, "tiny", (schedule,), 2, submitted=1.0)
    return ScheduledJob(job, schedule, ImageCost(1.0, 1.0, 1.0))


def test_token_counts_are_by_schedule_object(runner: Runner) -> None:
    batch = [scheduled(0, EXACT), scheduled(1, FAST), scheduled(2, FAST)]
    assert token_counts(runner, batch) == {id(EXACT): (17, 17, 17), id(FAST): (17, 13, 9)}


def test_a_prediction_becomes_an_outcome_with_its_schedule_and_queueing_delay() -> None:
    counts = {id(EXACT): (17, 17), id(FAST): (17, 9)}
    batch = [scheduled(5, FAST)]
    (outcome,) = outcomes(batch, [GOOD], counts, started=3.5)
    assert outcome == Outcome(
        id=5,
        schedule=FAST,
        scores=GOOD.scores,
        classes=GOOD.classes,
        tokens_out=9,
        queue_seconds=2.5,
    )


def test_failures_carry_no_prediction() -> None:
    counts = {id(EXACT): (17, 17)}
    batch = [scheduled(number, EXACT) for number in range(4)]
    found = outcomes(
        batch, [Failure.FAILED, Failure.OUT_OF_MEMORY, WITH_NAN, GOOD], counts, started=1.0
    )
    assert found[:3] == (
        Outcome(0, Failure.FAILED),
        Outcome(1, Failure.OUT_OF_MEMORY),
        Outcome(2, Failure.FAILED),
    )
    assert not found[3].failure


def test_failures_of_a_batch_include_cured_failures_and_nan() -> None:
    assert batch_failures(IsolationResult([GOOD], 1)) == ()
    cured = IsolationResult([GOOD, GOOD], 1, frozenset({Failure.OUT_OF_MEMORY, Failure.FAILED}))
    assert batch_failures(cured) == ("error", "out-of-memory")
    with_nan = IsolationResult([WITH_NAN, WITH_NAN], 2, frozenset({Failure.FAILED}))
    assert batch_failures(with_nan) == ("error", "nan")
