from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from server.api.pipeline.inference import cancel_at, cancel_on_disconnect
from server.errors import DeadlineExceeded


class Work:
    """Work that ends after ``seconds``, and notes whether it was cancelled."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.cancelled = False

    async def run(self) -> str:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return "result"


def client(*, disconnects: bool) -> Any:
    """The ``receive`` of a client that disconnects at once, or never."""
    messages = [{"type": "http.request"}]
    if disconnects:
        messages.append({"type": "http.disconnect"})

    async def receive() -> dict[str, str]:
        if messages:
            return messages.pop(0)
        return await asyncio.Future()

    return receive


def test_work_is_cancelled_at_the_deadline():
    work = Work(seconds=60)

    async def main() -> None:
        async with cancel_at(time.monotonic() + 0.02):
            await work.run()

    with pytest.raises(DeadlineExceeded):
        asyncio.run(main())
    assert work.cancelled


@pytest.mark.parametrize("seconds", [None, 60])
def test_work_without_a_deadline_or_before_it_ends_by_itself(seconds):
    async def main() -> str:
        deadline = None if seconds is None else time.monotonic() + seconds
        async with cancel_at(deadline):
            return await Work(seconds=0).run()

    assert asyncio.run(main()) == "result"


def test_work_is_cancelled_when_the_client_disconnects():
    work = Work(seconds=60)
    with pytest.raises(ClientDisconnect):
        asyncio.run(cancel_on_disconnect(client(disconnects=True), work.run()))
    assert work.cancelled


def test_the_result_of_work_is_returned_while_the_client_is_connected():
    work = Work(seconds=0)
    result = asyncio.run(cancel_on_disconnect(client(disconnects=False), work.run()))
    assert result == "result"


def test_the_error_of_work_is_raised_while_the_client_is_connected():
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(cancel_on_disconnect(client(disconnects=False), fail()))


def test_work_is_cancelled_when_the_request_is_cancelled():
    work = Work(seconds=60)

    async def main() -> None:
        async with asyncio.timeout(0.02):
            await cancel_on_disconnect(client(disconnects=False), work.run())

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert work.cancelled
