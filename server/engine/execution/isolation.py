"""Isolation of failures: a batch that fails runs again in halves, down to the images at fault."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from server.errors import DeviceLost
from server.ipc.messages import FailureKind

log = logging.getLogger("tome.engine")

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class IsolationResult(Generic[Answer]):
    """The answers of a batch, and the failures before they were obtained.

    Attributes:
        answers: one per item, in order; the kind of failure where an item fails alone.
        largest: number of items in the largest run that succeeded.
        failures: kinds of all failures, including those that halving cured.
    """

    answers: list[Answer | FailureKind]
    largest: int
    failures: frozenset[FailureKind] = frozenset()

    @property
    def batch_too_large(self) -> bool:
        """Whether memory ran out for items together, each of which succeeded in a smaller run."""
        return "out-of-memory" in self.failures and "out-of-memory" not in self.answers


def run_isolated(
    run: Callable[[Sequence[Item]], Sequence[Answer]],
    items: Sequence[Item],
    free_memory: Callable[[], None],
    failure_kind: Callable[[Exception], FailureKind],
) -> IsolationResult[Answer]:
    """Run ``items`` together; if that fails, run each half, down to the single items at fault.

    With k items at fault among n, this takes at most 2k ceil(log2(n)) runs besides the first. It
    handles a shortage of memory and an image that makes the model fail in the same way.

    Args:
        free_memory: called before a retry after memory ran out.
        failure_kind: returns the kind of failure of an exception.

    Raises:
        DeviceLost: no retry can help.
    """
    try:
        return IsolationResult(list(run(items)), len(items))
    except DeviceLost:
        raise
    except Exception as error:  # any other exception of the model concerns this batch alone
        failure = failure_kind(error)
        is_single = len(items) == 1
        log.warning("the model failed on %d images (%s)", len(items), failure, exc_info=is_single)
    # Outside the handler, since the traceback of the exception keeps alive everything that the
    # failed run allocated.
    if failure == "out-of-memory":
        free_memory()
    if len(items) == 1:
        return IsolationResult([failure], 0, frozenset({failure}))
    middle = len(items) // 2
    first = run_isolated(run, items[:middle], free_memory, failure_kind)
    second = run_isolated(run, items[middle:], free_memory, failure_kind)
    return IsolationResult(
        answers=first.answers + second.answers,
        largest=max(first.largest, second.largest),
        failures=first.failures | second.failures | {failure},
    )
