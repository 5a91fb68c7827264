"""Several works at the same time, which succeed together or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def run_together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results of ``works``, in their order.

    Whatever happens, none of them still runs when this ends: no work may outlive the slots that it
    writes to.

    Raises:
        The error of the work that fails first; all others are cancelled then.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as group_error:
        # The first error comes first; it made the group cancel all other tasks.
        raise group_error.exceptions[0] from None
    return [task.result() for task in tasks]
