"""HTTP servers in the event loop, without uvicorn's ways with signals and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Generator, Sequence

import uvicorn
from starlette.types import ASGIApp

from server.api.transport.handshakes import accept_the_last
from server.api.transport.protocol import BoundedProtocol, Bounds, HttpConfig
from server.errors import ConfigError

log = logging.getLogger("tome.server")

KEEP_ALIVE_SECONDS = 75
CUT_SECONDS = 0.5
OTHER_FILES = 64  # that are open beside the connections


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers, which close the socket first and end the process with the signal's code."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals alone."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer whoever has connected by now, then close the sockets and end."""
        if not self.force_exit:
            await accept_the_last(sockets or ())
        await super().shutdown(sockets)

    async def cut(self) -> int:
        """Abort whatever connections are still open; on how many of them an answer was not complete.

        The task of a request whose client does not read would neither end by itself nor be
        cancelled: uvicorn catches that, and sends that client one more answer. It takes twice
            `CUT_SECONDS` at most.
        """
        await self._settle()  # what has failed with the engines is being answered
        connections = [
            one for one in self.server_state.connections if isinstance(one, BoundedProtocol)
        ]
        waiting = sum(connection.waits for connection in connections)
        for connection in connections:
            connection.transport.abort()
        await self._settle()
        return waiting

    async def _settle(self) -> None:
        """Wait for `CUT_SECONDS` at most until no request is being handled."""
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks), timeout=CUT_SECONDS)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` and ``port``. Raises `ConfigError`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server((str(address[0]), int(address[1])), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def allow_connections(wanted: int) -> int:
    """Raise the limit on open files for ``wanted`` connections, as far as the system lets us; how many it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < limit:
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    allowed = max(1, limit - OTHER_FILES)
    if allowed < wanted:
        log.warning("the limit on open files (ulimit -n) allows %d connections only", allowed)
    return allowed


def http_config(app: ASGIApp, bounds: Bounds, proxies: Sequence[str] = ()) -> HttpConfig:
    """How both of our servers run.

    Args:
        proxies: addresses and networks whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are
            believed.
    """
    return HttpConfig(
        app,
        bounds,
        log_config=None,
        access_log=False,
        ws="none",  # nothing here speaks it, and its connections would know no bounds
        lifespan="off",
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
