"""A batch that fails is run again in halves, until whatever makes it fail is alone."""

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
class Isolated(Generic[Answer]):
    """What became of a batch.

    Attributes:
        answers: one per item, in order; the kind of failure where an item failed alone.
        largest: how many items the largest run had that went well.
        kinds: of all failures on the way, those that halving cured included.
    """

    answers: list[Answer | FailureKind]
    largest: int
    kinds: frozenset[FailureKind] = frozenset()

    @property
    def ran_out_together(self) -> bool:
        """Whether memory ran out for items together that all went well in smaller runs."""
        return "out-of-memory" in self.kinds and "out-of-memory" not in self.answers


def run_isolated(
    run: Callable[[Sequence[Item]], Sequence[Answer]],
    items: Sequence[Item],
    free_memory: Callable[[], None],
    kind_of: Callable[[Exception], FailureKind],
) -> Isolated[Answer]:
    """Run ``items`` together; if that fails, each half, down to the single ones at fault.

    k items at fault among n cost at most 2k ceil(log2(n)) runs more than the first, and whether
    memory is short or an image is poison need not be known beforehand.

    Args:
        free_memory: called before a retry after running out of memory.
        kind_of: what an exception means.

    Raises:
        DeviceLost: no retry can help.
    """
    try:
        return Isolated(list(run(items)), len(items))
    except DeviceLost:
        raise
    except Exception as error:  # whatever the model raises concerns this batch alone
        kind = kind_of(error)
        log.warning(
            "the model failed on %d images (%s)", len(items), kind, exc_info=len(items) == 1
        )
    # Only here, after the exception is gone: its traceback held on to everything that the failed
    # run had allocated.
    if kind == "out-of-memory":
        free_memory()
    if len(items) == 1:
        return Isolated([kind], 0, frozenset({kind}))
    middle = len(items) // 2
    first, second = (
        run_isolated(run, half, free_memory, kind_of) for half in (items[:middle], items[middle:])
    )
    largest = max(first.largest, second.largest)
    return Isolated(first.answers + second.answers, largest, first.kinds | second.kinds | {kind})
