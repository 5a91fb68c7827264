"""One keep-alive connection (HTTP/1.1), on the bare transport: a general client costs more than a small model's answer.

`httptools` is the parser that the server runs on as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import cast

import httptools


class NoAnswer(Exception):
    """A request came to nothing; ``kind`` is ``connect``, ``closed``, ``timeout`` or ``protocol``."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Connection(asyncio.Protocol):
    """Sends one request at a time and reads its answer.

    Args:
        on_lost: called once the connection is closed, by whichever side.

    Attributes:
        usable: it is open, and the last answer said that it stays so.
    """

    def __init__(self, on_lost: Callable[[Connection], None]) -> None:
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer: asyncio.Future[tuple[int, bytes, float]] | None = None
        self.transport: asyncio.Transport | None = None
        self.usable = False

    async def exchange(self, request: Sequence[bytes], timeout: float) -> tuple[int, bytes, float]:
        """Send ``request``; gives the answer's status, its body, and when it was complete (``time.monotonic()``).

        Raises:
            NoAnswer: there was none.
        """
        if self.transport is None or not self.usable:
            raise NoAnswer("closed", "the connection is closed")
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self._body = []
        timer = loop.call_later(timeout, self._fail, "timeout", f"no answer within {timeout:g} s")
        self.transport.writelines(request)
        try:
            return await self._answer
        finally:
            timer.cancel()
            if not self._answer.done() or self._answer.cancelled():
                self.close()  # whoever waited is gone; the answer must not reach the next request
            self._answer = None

    def close(self) -> None:
        """End the connection, at once."""
        self.usable = False
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of `asyncio.Protocol`."""
        self.transport = cast(asyncio.Transport, transport)
        self.usable = True  # uvloop's is none by inheritance

    def eof_received(self) -> None:
        """Of `asyncio.Protocol`: the server ends an idle connection, or an answer in its middle."""
        self.usable = False

    def data_received(self, data: bytes) -> None:
        """Of `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("protocol", "the answer is no HTTP")

    def connection_lost(self, exc: Exception | None) -> None:
        """Of `asyncio.Protocol`."""
        self._fail("closed", "the server closed the connection before it answered")
        self._on_lost(self)

    def on_body(self, body: bytes) -> None:
        """Of `httptools`: a part of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Of `httptools`: the answer is complete."""
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer, such as 100 Continue
            return
        keep = self._parser.should_keep_alive()
        if self._answer is None or self._answer.done():
            return self.close()  # nobody asked
        self._answer.set_result((status, b"".join(self._body), time.monotonic()))
        if not keep:
            self.close()

    def _fail(self, kind: str, detail: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswer(kind, detail))
        self.close()
