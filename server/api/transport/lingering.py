"""Lingering close: a connection that closes with unread input delivers its last response first.

Closing a socket with unread bytes sends a reset, and a reset can overtake the response: the client,
or the proxy in between, then sees a broken connection instead of the answer. So the server closes
its own direction first, and reads on until the client closes too (RFC 9112, section 9.6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A client that neither sends nor closes has nothing more to lose.
IDLE_SECONDS = 2.0
# While the server stops, it waits for all of its connections.
STOP_SECONDS = 2.0


@dataclass(frozen=True)
class LingerLimits:
    """How much input is read and discarded before a connection is closed whatever is unread.

    Attributes:
        seconds: most time of reading on; it also ends after `IDLE_SECONDS` without input.
        size: most bytes that are discarded.
    """

    seconds: float = 10.0
    size: int = 64 << 20


class LingeringTransport(asyncio.Transport):
    """A transport whose `close` lingers as long as more input is to be expected.

    Args:
        transport: of the connection.
        limits: of the lingering.
        expects_input: whether the client may still be sending. Called by `close`.
        on_linger: called when the lingering begins.

    Attributes:
        lingering: whether `close` was called, and input is being discarded.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        limits: LingerLimits,
        expects_input: Callable[[], bool],
        on_linger: Callable[[], None],
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._expects_input = expects_input
        self._on_linger = on_linger
        self._seconds_left = limits.seconds
        self._bytes_left = limits.size
        self._end = 0.0
        self._last_input = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.lingering = False

    def close(self) -> None:
        """Send what was written, then close; linger first if more input is expected."""
        if self.is_closing():
            return
        if self._expects_input():
            self._linger()
        else:
            self._transport.close()

    def discard(self, data: bytes) -> None:
        """Take input that arrives while lingering."""
        self._last_input = self._loop.time()
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._finish()

    def limit_seconds(self, seconds: float) -> None:
        """Linger for ``seconds`` from now at most, also if the lingering begins later."""
        self._seconds_left = min(self._seconds_left, seconds)
        self._end = min(self._end, self._loop.time() + seconds)
        if self.lingering:
            self._check()

    def connection_lost(self) -> None:
        """Clean up after the end of the connection."""
        if self._timer is not None:
            self._timer.cancel()

    def _linger(self) -> None:
        self.lingering = True
        self._last_input = self._loop.time()
        self._end = self._last_input + self._seconds_left
        self._on_linger()
        self._transport.write_eof()
        self._transport.resume_reading()
        self._check()

    def _check(self) -> None:
        """End the lingering if it is time, else check again later."""
        if self._timer is not None:
            self._timer.cancel()
        end = min(self._end, self._last_input + IDLE_SECONDS)
        if end <= self._loop.time():
            self._finish()
        else:
            self._timer = self._loop.call_at(end, self._check)

    def _finish(self) -> None:
        self.connection_lost()
        self._transport.close()

    # The methods of the transport itself.

    def is_closing(self) -> bool:
        """Return whether the connection is closed, or lingers before."""
        return self.lingering or self._transport.is_closing()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def write(self, data: Any) -> None:
        """Send ``data``, unless the connection is closing."""
        if not self.lingering:
            self._transport.write(data)

    def pause_reading(self) -> None:
        """Stop receiving."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that the kernel has not taken yet."""
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the connection."""
        return self._transport.get_extra_info(name, default)
