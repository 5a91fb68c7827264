"""Lingering close: a connection that closes with unread input delivers its last response first.

Closing a socket with unread bytes sends a reset, and a reset can overtake the response: the client,
or the proxy in between, then sees a broken connection instead of the answer. So the server closes
its own direction first, and reads on until the client closes too (RFC 9112, section 9.6).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

# A client that neither sends nor closes has nothing more to lose.
IDLE_SECONDS = 2.0


@dataclass(frozen=True)
class LingerLimits:
    """How much input is read and discarded before a connection is closed whatever is unread.

    Attributes:
        seconds: most time of reading on; it also ends after `IDLE_SECONDS` without input.
        size: most bytes that are discarded.
    """

    seconds: float = 10.0
    size: int = 64 << 20


class LingeringClose:
    """The close of one connection: what was written is sent, and input is read and discarded.

    It begins at once.

    Args:
        transport: of the connection.
    """

    def __init__(self, transport: asyncio.Transport, limits: LingerLimits) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._last_input = self._loop.time()
        self._end = self._last_input + limits.seconds
        self._bytes_left = limits.size
        self._timer: asyncio.TimerHandle | None = None
        transport.write_eof()
        transport.resume_reading()
        self._check()

    def discard(self, data: bytes) -> None:
        """Take input that arrives."""
        self._last_input = self._loop.time()
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._finish()

    def limit_seconds(self, seconds: float) -> None:
        """Linger for ``seconds`` from now at most."""
        self._end = min(self._end, self._loop.time() + seconds)
        self._check()

    def cancel(self) -> None:
        """Stop waiting: the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        """End the lingering if it is time, else check again later."""
        self.cancel()
        end = min(self._end, self._last_input + IDLE_SECONDS)
        if end <= self._loop.time():
            self._finish()
        else:
            self._timer = self._loop.call_at(end, self._check)

    def _finish(self) -> None:
        self.cancel()
        self._transport.close()
