"""The outcome of each job of a batch that ran, as the API process gets it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server.engine.execution.image_output import ImageOutput
from server.engine.execution.isolation import IsolationResult
from server.engine.execution.runner import Runner
from server.engine.scheduling.scheduler import ScheduledJob
from server.ipc.messages import BatchFailure, Failure, Outcome

_BATCH_FAILURES = {
    Failure.FAILED: BatchFailure.ERROR,
    Failure.OUT_OF_MEMORY: BatchFailure.OUT_OF_MEMORY,
}


def token_counts(
    runner: Runner,
    batch: Sequence[ScheduledJob],
) -> dict[int, tuple[int, ...]]:
    """Return the token counts of each schedule in ``batch``, by the identity of the schedule.

    Most images of a batch share a few schedule objects, and comparing identities is cheaper than
    comparing schedules.
    """
    schedules = {id(scheduled.schedule): scheduled.schedule for scheduled in batch}
    return {key: runner.tokens(schedule) for key, schedule in schedules.items()}


def outcomes(
    batch: Sequence[ScheduledJob],
    answers: Sequence[ImageOutput | Failure],
    counts: Mapping[int, tuple[int, ...]],
    started: float,
) -> tuple[Outcome, ...]:
    """Return the outcome of each job of a batch that ran.

    Args:
        counts: see `token_counts`.
        started: when the batch began.
    """
    return tuple(
        [
            _outcome(scheduled, answer, counts[id(scheduled.schedule)][-1], started)
            for scheduled, answer in zip(batch, answers, strict=True)
        ]
    )


def _outcome(
    scheduled: ScheduledJob,
    answer: ImageOutput | Failure,
    tokens_out: int,
    started: float,
) -> Outcome:
    """Return the outcome of one job. An answer that contains NaN counts as a failure."""
    job, schedule, _ = scheduled
    if isinstance(answer, Failure):
        return Outcome(job.id, answer)
    if not answer.finite:
        return Outcome(job.id, Failure.FAILED)
    scores, classes, _, features, source = answer
    queue_seconds = started - job.submitted
    # Positional, since keyword arguments would double the time of this function, which runs for
    # every image.
    return Outcome(
        job.id, None, schedule, scores, classes, tokens_out, queue_seconds, features, source
    )


def batch_failures(result: IsolationResult) -> tuple[BatchFailure, ...]:
    """Return the kinds of failures in a batch."""
    failures = sorted(_BATCH_FAILURES[failure] for failure in result.failures)
    for answer in result.answers:
        if isinstance(answer, ImageOutput) and not answer.finite:
            return (*failures, BatchFailure.NAN)
    return tuple(failures)
