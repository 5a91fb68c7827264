"""When work on an answer is given up: its deadline has passed, or its client has gone away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from server.errors import DeadlineExceeded

T = TypeVar("T")


@contextlib.asynccontextmanager
async def until(deadline: float | None) -> AsyncIterator[None]:
    """Cancel what runs within at ``deadline``, ``time.monotonic()`` seconds. Raises `DeadlineExceeded` then."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the answer was there") from None


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, unless the client goes away first.

    Raises:
        ClientDisconnect: it has; ``work`` is cancelled.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return once the client has gone away; its request's body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
