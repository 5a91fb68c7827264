"""Isolation of failures: a batch that fails runs again in halves, down to the images at fault."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.engine.device import errors
from server.engine.execution.image_output import ImageOutput
from server.engine.scheduling.scheduler import ScheduledJob
from server.errors import DeviceLost
from server.ipc.messages import Failure

log = logging.getLogger("tome.engine")


@dataclass(frozen=True)
class IsolationResult:
    """The answers of a batch, and the failures before they were obtained.

    Attributes:
        answers: one per job, in order; the kind of failure where a job fails alone.
        largest: number of jobs in the largest run that succeeded.
        failures: kinds of all failures, including those that halving cured.
    """

    answers: list[ImageOutput | Failure]
    largest: int
    failures: frozenset[Failure] = frozenset()

    @property
    def batch_too_large(self) -> bool:
        """Whether memory ran out for jobs together, each of which succeeded in a smaller run."""
        ran_out = Failure.OUT_OF_MEMORY in self.failures
        return ran_out and Failure.OUT_OF_MEMORY not in self.answers


def run_isolated(
    run: Callable[[Sequence[ScheduledJob]], Sequence[ImageOutput]],
    batch: Sequence[ScheduledJob],
) -> IsolationResult:
    """Run ``batch`` together; if that fails, run each half, down to the single jobs at fault.

    With k jobs at fault among n, this takes at most 2k ceil(log2(n)) runs besides the first. It
    handles a shortage of memory and an image that makes the model fail in the same way.

    Raises:
        DeviceLost: no retry can help.
    """
    try:
        return IsolationResult(list(run(batch)), len(batch))
    except DeviceLost:
        raise
    except Exception as error:  # any other exception of the model concerns this batch alone
        failure = errors.classify_error(error)
        _log_failure(batch, error)
    # Outside the handler, since the traceback of the exception keeps alive everything that the
    # failed run allocated.
    if failure == Failure.OUT_OF_MEMORY:
        errors.free_memory()
    if len(batch) == 1:
        return IsolationResult([failure], 0, frozenset({failure}))
    middle = len(batch) // 2
    first = run_isolated(run, batch[:middle])
    second = run_isolated(run, batch[middle:])
    return IsolationResult(
        answers=first.answers + second.answers,
        largest=max(first.largest, second.largest),
        failures=first.failures | second.failures | {failure},
    )


def _log_failure(batch: Sequence[ScheduledJob], error: Exception) -> None:
    """Log what the model raised; for a single job with its request and the traceback."""
    if len(batch) > 1:
        # As text: a log handler may keep its arguments, and an exception keeps its frames alive.
        log.warning("the model failed on %d images: %s", len(batch), str(error))
        return
    fields = {"request_id": batch[0].job.request_id}
    log.warning("the model failed on one image", exc_info=error, extra=fields)
