"""HTTP servers in the event loop: uvicorn without its handling of signals and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import Callable, Generator, Sequence

import uvicorn
from starlette.types import ASGIApp

from server.api.transport.acceptor import Acceptor
from server.api.transport.protocol import (
    UNIX_CLIENT,
    ConnectionRegistry,
    HttpConfig,
    LimitedProtocol,
)
from server.system.file_limit import raise_file_limit

log = logging.getLogger("tome.server")

# Longer than the 60 s for which common proxies keep idle connections to a server: the proxy closes
# them first, and never sends a request on a connection that is being closed here.
KEEP_ALIVE_SECONDS = 75
# Prometheus and a few viewers; they must not use up the files of those who send images.
MAX_METRICS_CONNECTIONS = 32
# Open files besides the connections: standard streams, listening sockets, the event loop, the
# shared memory, and one socket per engine, about 30 on a machine with eight GPUs; the connections
# to the port of the metrics, and refused ones (`protocol.MAX_REFUSED`); and files that libraries
# open.
OTHER_FILES = 128


class HttpServer(uvicorn.Server):
    """uvicorn's server, which stops by its caller alone and accepts pending connections first.

    uvicorn handles signals itself: it closes the socket first, and ends the process with the
    signal's exit code.

    Args:
        has_fewest: whether no other process that accepts from the same sockets has fewer
            connections than so many.

    Attributes:
        accepts_pending: whether a stop accepts the connections that wait in the kernel; else they
            are left to the other processes.
    """

    config: HttpConfig

    def __init__(
        self, config: HttpConfig, has_fewest: Callable[[int], bool] = lambda connections: True
    ) -> None:
        super().__init__(config)
        self._has_fewest = has_fewest
        self.accepts_pending = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Install no signal handlers."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections from ``sockets``."""
        loop = asyncio.get_running_loop()
        connections = self.server_state.connections

        def create_protocol() -> asyncio.Protocol:
            return LimitedProtocol(self.config, self.server_state, app_state={}, _loop=loop)

        def may_accept() -> bool:
            return self.should_exit or self._has_fewest(len(connections))

        acceptors = [Acceptor(listener, create_protocol, may_accept) for listener in sockets or ()]
        self.servers = acceptors  # type: ignore[assignment]  # has what uvicorn calls
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept and answer pending connections, then close the sockets."""
        if self.accepts_pending and not self.force_exit:
            await accept_pending(sockets or (), self.config.registry.stop_plan.accept)
        await super().shutdown(sockets)

    async def abort_connections(self) -> int:
        """Abort all open connections. Return how many of them had an incomplete response.

        A request whose client does not read neither ends by itself nor can be cancelled: uvicorn
        catches the cancellation and sends that client another response.
        """
        await self._settle()  # requests that failed with the engines are being answered
        connections = [
            connection
            for connection in self.server_state.connections
            if isinstance(connection, LimitedProtocol)
        ]
        incomplete = sum(connection.is_response_pending for connection in connections)
        for connection in connections:
            connection.transport.abort()
        await self._settle()
        return incomplete

    async def _settle(self) -> None:
        """Wait until no request is in flight, for half of the time for aborting at most."""
        if self.server_state.tasks:
            seconds = self.config.registry.stop_plan.abort / 2
            await asyncio.wait(list(self.server_state.tasks), timeout=seconds)


async def accept_pending(listeners: Sequence[socket.socket], seconds: float) -> None:
    """Wait until the event loop has accepted all established connections, ``seconds`` at most.

    Closing a listening socket resets the connections that wait in the kernel, with their requests
    sent; under load there are some. Meanwhile one new connection may wait at a time: the kernel
    drops the SYN of others, whose clients retransmit it after a second (RFC 6298, section 2).
    """
    pending = select.poll()
    for listener in listeners:
        listener.listen(0)  # what waits already stays
        pending.register(listener, select.POLLIN)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while pending.poll(0):
                await asyncio.sleep(0)


def allow_connections(wanted: int) -> int:
    """Raise the limit on open files for ``wanted`` connections. Return how many are allowed."""
    limit = raise_file_limit(wanted + OTHER_FILES)
    allowed = max(1, limit - OTHER_FILES)
    if allowed < wanted:
        log.warning("the limit on open files (ulimit -n) allows only %d connections", allowed)
    return allowed


def http_config(
    app: ASGIApp, registry: ConnectionRegistry, proxies: Sequence[str] = ()
) -> HttpConfig:
    """Return the configuration of an HTTP server for ``app``.

    Args:
        app: the ASGI application.
        registry: of its connections.
        proxies: trusted addresses and networks: their ``X-Forwarded-For`` and
            ``X-Forwarded-Proto`` headers are used, and those of a client of a Unix socket.
    """
    return HttpConfig(
        app,
        registry,
        log_config=None,
        access_log=False,
        ws="none",  # no route uses WebSockets, and their connections would have no limits
        lifespan="off",
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=_trusted_clients(proxies),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


def _trusted_clients(proxies: Sequence[str]) -> list[str]:
    """Return ``proxies`` with the clients of a Unix socket, whose file says who may connect."""
    if "*" in proxies:
        return ["*"]
    return [*proxies, UNIX_CLIENT]
