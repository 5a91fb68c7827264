"""Cancellation of a request's work: at its deadline, or when its client disconnects."""

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
async def cancel_at(deadline: float | None) -> AsyncIterator[None]:
    """Cancel the block at ``deadline``, in ``time.monotonic()`` seconds.

    Raises:
        DeadlineExceeded: the deadline has passed.
    """
    try:
        # `timeout_at` takes the time of the event loop. The loops of asyncio and uvloop both use
        # CLOCK_MONOTONIC, as ``time.monotonic()`` does.
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the response was ready") from None


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``, unless the client disconnects first.

    Raises:
        ClientDisconnect: the client has disconnected; ``work`` is cancelled.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for future in (task, disconnect):
            future.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return once the client has disconnected. The request's body must have been read before."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
