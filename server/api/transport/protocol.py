"""One HTTP connection: uvicorn's protocol with the limits that it lacks.

uvicorn has no timeout for a request's header or for a client that does not read its response, and
no limit on the size of a header, the number of connections or the number of pipelined requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.api.contract.asgi_extensions import CLIENT_CONNECTION, LINGERING_CLOSE
from server.api.transport.cycle import RequestCycle, refusal
from server.api.transport.lingering import LingeringClose, LingerLimits
from server.api.transport.upgrade_offer import body_parser, framing
from server.errors import (
    HeaderTooLarge,
    Malformed,
    Overloaded,
    Refusal,
    RequestError,
    SlowHeader,
)
from server.system.addresses import without_mapping
from server.system.stop_plan import StopPlan

MAX_HEADER_BYTES = 65536
MAX_PIPELINED = 32  # requests that wait behind the one in flight
RETRY_SECONDS = 1.0  # of a refused connection
UNIX_CLIENT = "unix"  # in place of the address of a client
MAX_REFUSED = 16  # refused connections that linger, beyond the limit on connections


@dataclass
class ConnectionRegistry:
    """The idle connections of one HTTP server, and the limits that all its connections share.

    Attributes:
        max_connections: open at once. One more replaces the connection that is idle longest.
        header_timeout: seconds for a request's header, from its first byte, or from the
            connection's begin.
        send_timeout: seconds after which a client must read on once the send buffer is full.
        on_refusal: called with the error of each refusal by the protocol.
        linger: limits of what is read from a connection that closes.
        stop_plan: the times of a stop.
        lingering: connections with a complete response that discard input, oldest first.
        unused: connections without a request so far, oldest first.
        idle: kept-alive connections between two requests, longest idle first.
        refused: connections beyond the limit that linger after their refusal, oldest first.
    """

    max_connections: int
    header_timeout: float
    send_timeout: float
    on_refusal: Callable[[RequestError], None]
    linger: LingerLimits = field(default_factory=LingerLimits)
    stop_plan: StopPlan = field(default_factory=StopPlan)
    lingering: dict[LimitedProtocol, None] = field(default_factory=dict)
    unused: dict[LimitedProtocol, None] = field(default_factory=dict)
    idle: dict[LimitedProtocol, None] = field(default_factory=dict)
    refused: dict[LimitedProtocol, None] = field(default_factory=dict)

    def mark_busy(self, connection: LimitedProtocol) -> None:
        """Record that ``connection`` is not idle any more."""
        self.unused.pop(connection, None)
        self.idle.pop(connection, None)

    def forget(self, connection: LimitedProtocol) -> None:
        """Record that ``connection`` has ended."""
        self.mark_busy(connection)
        self.lingering.pop(connection, None)
        self.refused.pop(connection, None)

    def replaceable(self) -> LimitedProtocol | None:
        """Return the connection to close for a new one.

        One that only discards input comes first, then an unused one, then the one that is idle for
        longest.
        """
        queues = (self.lingering, self.unused, self.idle)
        return next((connection for queue in queues for connection in queue), None)

    def add_refused(self, connection: LimitedProtocol) -> None:
        """Let a refused connection linger; end the oldest of them if there are too many."""
        self.refused[connection] = None
        if len(self.refused) > MAX_REFUSED:
            oldest = next(iter(self.refused))
            del self.refused[oldest]
            oldest.transport.abort()


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration with the ``registry`` of `LimitedProtocol`."""

    def __init__(self, app: Any, registry: ConnectionRegistry, **settings: Any) -> None:
        super().__init__(app, http=LimitedProtocol, **settings)
        self.registry = registry


class LimitedProtocol(HttpToolsProtocol):
    """One connection with limits; it is the `ClientConnection` of its requests."""

    config: HttpConfig

    def __init__(self, config: HttpConfig, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self._registry = config.registry
        self._header_timer: asyncio.TimerHandle | None = None  # runs until a header is complete
        self._send_timer: asyncio.TimerHandle | None = None  # runs while the client does not read
        self._lingering: LingeringClose | None = None  # the connection closes, and discards input
        self._stopping = False
        self._in_header = False
        self._in_message = False  # part of a request has arrived
        self._header_began = False  # in the data that is being parsed
        self._header_bytes = 0
        # The request in flight. With pipelining it is not `self.cycle`, the last one received.
        self._active_cycle: RequestResponseCycle | None = None
        self._extensions = {LINGERING_CLOSE: {}, CLIENT_CONNECTION: self}
        self.disconnected = False
        self.on_disconnect: Callable[[], object] | None = None

    @property
    def is_response_pending(self) -> bool:
        """Whether part of a response has not been sent yet."""
        return not self._all_answered or self.transport.get_write_buffer_size() > 0

    @property
    def _all_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def body_arrived(self) -> bool:
        """Whether the whole body of the request in flight is in memory."""
        return self._active_cycle is not None and not self._active_cycle.more_body

    def is_closing(self) -> bool:
        """Return whether the connection is closed, or lingers before."""
        return self._lingering is not None or self.transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send a part of a response."""
        self.transport.write(data)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; at the limit close an idle one, or refuse this one if none is."""
        super().connection_made(transport)
        self._set_addresses()
        if len(self.connections) > self._registry.max_connections:
            replaceable = self._registry.replaceable()
            if replaceable is None:
                return self._refuse_connection()
            replaceable.evict()
        self._registry.unused[self] = None
        self._start_header_timer()

    def _set_addresses(self) -> None:
        """Correct what uvicorn took for the addresses of both ends.

        The client of a Unix socket has none, and is called `UNIX_CLIENT`.
        """
        if self.server is not None and self.server[1] is None:
            self.client = (UNIX_CLIENT, 0)
        if self.client is not None:
            self.client = (without_mapping(self.client[0]), self.client[1])
        if self.server is not None:
            self.server = (without_mapping(self.server[0]), self.server[1])

    def evict(self) -> None:
        """Close this idle connection in favour of a new one."""
        self._registry.forget(self)
        # The transport reports the end later. Until then the closed connection must not count.
        self.connections.discard(self)
        if self._lingering:
            return self.transport.abort()
        self._registry.on_refusal(Overloaded("idle", reason=Refusal.IDLE_CONNECTION))
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after the end of the connection."""
        self._registry.forget(self)
        self.disconnected = True
        if self.on_disconnect is not None:
            self.on_disconnect()
        if self._lingering:
            self._lingering.cancel()
        for timer in (self._header_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        # uvicorn informs the last request received. The one in flight would write to a closed
        # transport.
        if self._active_cycle is not None and not self._active_cycle.response_complete:
            self._active_cycle.disconnected = True
            self._active_cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse received bytes, and count those of the header."""
        if self._lingering:
            return self._lingering.discard(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._all_answered and self.timeout_keep_alive_task is None and not self.is_closing():
            self._start_header_timer()  # what has arrived is not a whole header
        if not self._in_header or self.is_closing():
            return
        # Data in which a header begins is not counted: it may begin with an earlier request.
        if not self._header_began:
            self._header_bytes += len(data)
        self._header_began = False
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(HeaderTooLarge(f"the header has more than {MAX_HEADER_BYTES} bytes"))

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, MemoryError):  # the request is not to blame
                self.logger.error("a connection was cut: this process has no more memory")
                return self.transport.abort()
            self._refuse(Malformed("this is not an HTTP/1.1 request"))
        except httptools.HttpParserUpgrade as offer:
            (header_end,) = offer.args
            self.parser = body_parser(self)
            self._parse(framing(self.headers) + data[header_end:])

    def on_message_begin(self) -> None:
        """Start to count a header."""
        super().on_message_begin()
        self.scope["extensions"] = self._extensions  # type: ignore[typeddict-item]
        self._in_header = True
        self._in_message = True
        self._header_began = True
        self._header_bytes = 0

    def on_headers_complete(self) -> None:
        """Start the request, or queue it behind the one in flight."""
        self._in_header = False
        self._stop_header_timer()
        self._registry.mark_busy(self)
        if len(self.pipeline) == MAX_PIPELINED:
            return self.transport.abort()
        is_next = self._all_answered
        self.cycle = self._create_cycle()
        if is_next:
            self._active_cycle = self.cycle
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _create_cycle(self) -> RequestCycle:
        """Complete the scope of the request whose header has arrived, and return its cycle.

        As uvicorn does, less what this server does not use: WebSockets, uvicorn's own prefix of
        paths, and its limit on concurrent requests.
        """
        scope = self.scope
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["http_version"] = self.parser.get_http_version()
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        return RequestCycle(
            scope=scope,
            transport=cast("asyncio.Transport", self),  # `close` lingers
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=scope["http_version"] != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body until it is received; without uvicorn's copies if it is alone."""
        cycle: Any = self.cycle
        if not cycle.body:
            cycle.body = b""  # the sum with it is ``body`` itself
        elif isinstance(cycle.body, bytes):
            cycle.body = bytearray(cycle.body)  # further parts are added in place
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Start the keep-alive timeout if the response came before the end of the body."""
        if self.parser.should_upgrade():
            return  # the header alone is complete
        super().on_message_complete()
        self._in_message = False
        if self.cycle.response_complete and not self.is_closing():
            self._stop_header_timer()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Go on with the next pipelined request, or mark the connection idle."""
        if self.is_closing():
            return
        if self.pipeline:
            next_cycle, _ = self.pipeline[-1]
            self._active_cycle = next_cycle
        super().on_response_complete()
        if self._all_answered:
            self._registry.idle[self] = None
            if self._in_header:
                self._start_header_timer()

    def shutdown(self) -> None:
        """Close the connection after its response, or after the request that may be arriving."""
        self._stopping = True
        if self._lingering:
            self._lingering.limit_seconds(self._registry.stop_plan.linger)
        elif self._all_answered:
            self.loop.call_later(self._registry.stop_plan.arrival, self._close_after_response)
        else:
            self.cycle.keep_alive = False

    def _close_after_response(self) -> None:
        if self._all_answered:
            self.close()
        else:
            self.cycle.keep_alive = False

    def close(self) -> None:
        """Send what was written, then close; linger first if more input is expected."""
        if self.is_closing():
            return
        if not self._expects_input():
            return self.transport.close()
        self._stop_header_timer()
        self._registry.mark_busy(self)
        if self in self.connections:
            self._registry.lingering[self] = None
        self._lingering = LingeringClose(self.transport, self._registry.linger)
        if self._stopping:
            self._lingering.limit_seconds(self._registry.stop_plan.linger)

    def _expects_input(self) -> bool:
        """Return whether the client has not sent the whole of its last request, or sends more."""
        return self._in_message or bool(self.pipeline)

    def timeout_keep_alive_handler(self) -> None:
        """Abort an idle connection, even if the client has not read its last response."""
        self.transport.abort()

    def pause_writing(self) -> None:
        """Start the send timeout: the client reads too slowly."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self._registry.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the send timeout: the client has read on."""
        if self._send_timer is not None:
            self._send_timer.cancel()
        super().resume_writing()

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(
                self._registry.header_timeout, self._on_header_timeout
            )

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_timeout(self) -> None:
        if self._in_header:
            seconds = self._registry.header_timeout
            self._refuse(SlowHeader(f"the header did not arrive within {seconds:g} s"))
        else:
            self.transport.abort()  # no request has begun, so there is nothing to answer

    def _refuse_connection(self) -> None:
        detail = f"{self._registry.max_connections} connections are busy already"
        error = Overloaded(detail, retry_after=RETRY_SECONDS, reason=Refusal.TOO_MANY_CONNECTIONS)
        self.connections.discard(self)
        self._registry.add_refused(self)
        self._refuse(error)

    def _refuse(self, error: RequestError) -> None:
        """Answer with ``error`` without a call of the application, and close the connection."""
        self._in_message = True  # the rest of it will not be parsed
        self._registry.on_refusal(error)
        self.transport.write(refusal(error))
        self.close()
