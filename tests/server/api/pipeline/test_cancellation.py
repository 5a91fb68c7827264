from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from server.api.contract.asgi_extensions import CLIENT_CONNECTION
from server.api.pipeline.cancellation import cancel_at
from server.api.pipeline.inference import cancel_on_disconnect
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


def test_work_that_ends_before_its_deadline_is_not_cancelled():
    async def main() -> str:
        async with cancel_at(time.monotonic() + 60):
            return await Work(seconds=0).run()

    assert asyncio.run(main()) == "result"


@dataclass
class Connection:
    """A connection of this server; its client may disconnect."""

    disconnected: bool = False
    on_disconnect: Callable[[], object] | None = None
    body_arrived: bool = True

    def end(self) -> None:
        self.disconnected = True
        if self.on_disconnect is not None:
            self.on_disconnect()


def request_of(connection: Connection | None, *, disconnects: bool = False) -> Request:
    """A request under this server, if there is a ``connection``, or under another."""
    extensions = {} if connection is None else {CLIENT_CONNECTION: connection}
    receive = client(disconnects=disconnects and connection is None)
    return Request({"type": "http", "extensions": extensions}, receive)


@pytest.mark.parametrize("connection", [None, Connection()], ids=["other", "own"])
class TestDisconnect:
    """Under this server, whose connection says that it ends, and under another ASGI server."""

    def run(self, connection: Connection | None, work: Coroutine[Any, Any, Any]) -> Any:
        """What ``work`` returns for a client that stays."""
        connection = connection and Connection()
        try:
            return asyncio.run(cancel_on_disconnect(request_of(connection), work))
        finally:
            assert connection is None or connection.on_disconnect is None

    def test_work_is_cancelled_when_the_client_disconnects(self, connection):
        work = Work(seconds=60)
        connection = connection and Connection()

        async def main() -> None:
            if connection is not None:
                asyncio.get_running_loop().call_later(0.02, connection.end)
            request = request_of(connection, disconnects=True)
            with pytest.raises(ClientDisconnect):
                await cancel_on_disconnect(request, work.run())
            # The task itself goes on: it counts the request, and logs it.
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await asyncio.sleep(0)

        asyncio.run(main())
        assert work.cancelled

    def test_the_result_of_work_is_returned_while_the_client_is_connected(self, connection):
        assert self.run(connection, Work(seconds=0).run()) == "result"

    def test_the_error_of_work_is_raised_while_the_client_is_connected(self, connection):
        async def fail() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            self.run(connection, fail())

    def test_work_is_cancelled_when_the_request_is_cancelled(self, connection):
        work = Work(seconds=60)

        async def main() -> None:
            async with asyncio.timeout(0.02):
                await cancel_on_disconnect(request_of(connection and Connection()), work.run())

        with pytest.raises(TimeoutError):
            asyncio.run(main())
        assert work.cancelled


def test_no_work_begins_for_a_client_that_has_disconnected():
    work = Work(seconds=60)
    coroutine = work.run()
    with pytest.raises(ClientDisconnect):
        asyncio.run(cancel_on_disconnect(request_of(Connection(disconnected=True)), coroutine))
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert not work.cancelled


def test_a_deadline_and_a_disconnect_at_once_end_the_work_once():
    work = Work(seconds=60)
    connection = Connection()

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.02, connection.end)
        async with cancel_at(time.monotonic() + 0.02):
            await cancel_on_disconnect(request_of(connection), work.run())

    with pytest.raises((ClientDisconnect, DeadlineExceeded)):
        asyncio.run(main())
    assert work.cancelled
