"""What cancels the work for a request: its deadline, and the end of its client's connection."""

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
async def cancel_at(deadline: float) -> AsyncIterator[None]:
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


async def race_with_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """As `server.api.pipeline.inference.cancel_on_disconnect`, by what every ASGI server offers.

    It takes a task for ``work`` and one that waits for a message from the client.
    """

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for future in (task, disconnect):
            future.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)
