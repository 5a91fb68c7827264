"""One HTTP connection: uvicorn's protocol with the bounds that it lacks, so that no client holds a connection for ever.

uvicorn waits without limit for a request's header, lets it grow without limit, takes any number of
connections and of pipelined requests, and waits without limit for a client that does not read.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from server.api.contract.problem_details import respond
from server.errors import HeaderTooLarge, Malformed, Overloaded, RequestError, SlowHeader

HEADER_BYTES = 65536
PIPELINED = 32
LAST_SECONDS = 0.5


@dataclass
class Bounds:
    """What all connections of one HTTP server share.

    Attributes:
        connections: most at once. One more takes the place of the one that has been idle longest.
        header_timeout: seconds in which a request's header must arrive, from its first byte, or
            from the connection.
        send_timeout: seconds in which a client that does not read must read on.
        on_refused: called with the error of each refusal on this level.
        silent: connections on which no request has arrived yet, oldest first.
        kept: connections that are kept alive between two requests, longest idle first.
    """

    connections: int
    header_timeout: float
    send_timeout: float
    on_refused: Callable[[RequestError], None]
    silent: dict[BoundedProtocol, None] = field(default_factory=dict)
    kept: dict[BoundedProtocol, None] = field(default_factory=dict)

    def forget(self, connection: BoundedProtocol) -> None:
        """``connection`` is not idle any more."""
        self.silent.pop(connection, None)
        self.kept.pop(connection, None)

    def longest_idle(self) -> BoundedProtocol | None:
        """Which connection to close for another one: one that has never asked for anything comes first."""
        return next(iter(self.silent), None) or next(iter(self.kept), None)


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration, and the ``bounds`` of `BoundedProtocol`."""

    def __init__(self, app: Any, bounds: Bounds, **settings: Any) -> None:
        super().__init__(app, http=BoundedProtocol, **settings)
        self.bounds = bounds


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    config: HttpConfig

    def __init__(self, config: HttpConfig, *arguments: Any, **more: Any) -> None:
        super().__init__(config, *arguments, **more)
        self._bounds = config.bounds
        self._timer: asyncio.TimerHandle | None = None  # runs until a header is complete
        self._stalled: asyncio.TimerHandle | None = None  # runs while the client does not read
        self._in_header = self._begins = False
        self._header_bytes = 0
        self._running: RequestResponseCycle | None = (
            None  # being answered; with pipelining not the last one to come
        )

    @property
    def waits(self) -> bool:
        """Whether the client has not been sent all of an answer yet."""
        return not self._answered or self.transport.get_write_buffer_size() > 0

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected; where there are too many, another one goes, or this one if none is idle."""
        super().connection_made(transport)
        if len(self.connections) > self._bounds.connections:
            idle = self._bounds.longest_idle()
            if idle is None:
                text = f"{self._bounds.connections} connections are busy already"
                return self._refuse(Overloaded(text, retry_after=1, reason="too-many-connections"))
            idle.give_way()
        self._bounds.silent[self] = None
        self._expect_header()

    def give_way(self) -> None:
        """Close this connection, which is idle, for another one."""
        self._bounds.forget(self)
        self.connections.discard(
            self
        )  # now, not when the transport says so: more may come before that
        self._bounds.on_refused(Overloaded("idle", reason="idle-connection"))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._bounds.forget(self)
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        # uvicorn tells the last one to come alone, and the one that runs would write to what is
        # closed.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        if self._answered:
            self._expect_header()
        super().data_received(data)
        if self._in_header and not self.transport.is_closing():
            # What stood before the header in its first bytes belongs to an earlier request.
            self._header_bytes += 0 if self._begins else len(data)
            self._begins = False
            if self._header_bytes > HEADER_BYTES:
                self._refuse(HeaderTooLarge(f"the header has more than {HEADER_BYTES} bytes"))

    def on_message_begin(self) -> None:
        """A header begins."""
        super().on_message_begin()
        self._in_header = self._begins = True
        self._header_bytes = 0

    def on_headers_complete(self) -> None:
        """A header is complete."""
        self._in_header = False
        self._disarm()
        self._bounds.forget(self)
        if len(self.pipeline) == PIPELINED:
            return self.transport.abort()
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle

    def on_message_complete(self) -> None:
        """A body is complete; if it was answered before that, the connection is idle from now on."""
        super().on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._disarm()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """An answer has been given."""
        if self.pipeline:
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        if self._answered and not self.transport.is_closing():
            self._bounds.kept[self] = None
            if self._in_header:
                self._expect_header()

    def shutdown(self) -> None:
        """The server ends: what the client is sending just now gets an answer still, which closes the connection."""
        if self._answered:
            self.loop.call_later(LAST_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has come for long: end the connection, even if the client has not read its last answer."""
        self.transport.abort()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._bounds.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read what waited."""
        if self._stalled is not None:
            self._stalled.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        self._refuse(Malformed("this is not a request of HTTP/1.1"))

    def _expect_header(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._bounds.header_timeout, self._on_slow_header)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_slow_header(self) -> None:
        if self._in_header:
            self._refuse(
                SlowHeader(f"the header did not arrive within {self._bounds.header_timeout:g} s")
            )
        else:
            self.transport.abort()  # a client that has asked for nothing is told nothing

    def _refuse(self, error: RequestError) -> None:
        """Answer with ``error``, which belongs to no request that the application knows, and close."""
        self._bounds.on_refused(error)
        request_id = uuid.uuid4().hex
        response = respond(error, request_id, {"X-Request-ID": request_id, "Connection": "close"})
        header = b"".join(b"%b: %b\r\n" % pair for pair in response.raw_headers)
        self.transport.write(STATUS_LINE[error.status] + header + b"\r\n" + bytes(response.body))
        self.transport.close()
