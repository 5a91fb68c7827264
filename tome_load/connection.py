"""One keep-alive connection (HTTP/1.1) on asyncio's transport.

A general HTTP client would cost more CPU time than the answer of a small model. The parser is
`httptools`, which the server uses too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import cast

import httptools


class NoAnswer(Exception):
    """A request failed; ``kind`` is ``connect``, ``closed``, ``timeout`` or ``protocol``."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class Connection(asyncio.Protocol):
    """Sends one request at a time and reads its answer.

    Args:
        on_lost: called once the connection is closed, by either side.

    Attributes:
        usable: the connection is open, and the last answer did not announce its end.
    """

    def __init__(self, on_lost: Callable[[Connection], None]) -> None:
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer: asyncio.Future[tuple[int, bytes, float]] | None = None
        self.transport: asyncio.Transport | None = None
        self.usable = False

    async def exchange(self, request: Sequence[bytes], timeout: float) -> tuple[int, bytes, float]:
        """Send ``request`` and return the status and body of its answer, and when it was complete.

        Times are those of ``time.monotonic()``.

        Raises:
            NoAnswer: there was no answer.
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
                # The caller was cancelled. Its answer must not reach the next request.
                self.close()
            self._answer = None

    def close(self) -> None:
        """Close the connection immediately."""
        self.usable = False
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Implement `asyncio.Protocol`."""
        # uvloop's transport does not inherit from asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self.usable = True

    def eof_received(self) -> None:
        """Implement `asyncio.Protocol`: the server closes an idle connection or breaks off."""
        self.usable = False

    def data_received(self, data: bytes) -> None:
        """Implement `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("protocol", "the answer is not HTTP")

    def connection_lost(self, exc: Exception | None) -> None:
        """Implement `asyncio.Protocol`."""
        self._fail("closed", "the server closed the connection before it answered")
        self._on_lost(self)

    def on_body(self, body: bytes) -> None:
        """Implement `httptools`: a chunk of the body arrived."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Implement `httptools`: the answer is complete."""
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer, such as 100 Continue
            return
        keep_alive = self._parser.should_keep_alive()
        if self._answer is None or self._answer.done():
            self.close()  # no request waits for this answer
            return
        body = b"".join(self._body)
        self._answer.set_result((status, body, time.monotonic()))
        if not keep_alive:
            self.close()

    def _fail(self, kind: str, detail: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswer(kind, detail))
        self.close()
