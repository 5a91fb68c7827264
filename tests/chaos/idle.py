"""Connections that stay open beside a load, between two requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from server.system.file_limit import raise_file_limit
from tests.chaos.client import Connection, Lost, encode

REQUEST = encode("GET", "/healthz")
SPARE_FILES = 256  # of this process, for everything else
# Below the 75 s after which the server closes an idle connection, also where a wave takes seconds.
REFRESH_SECONDS = 30.0
AT_ONCE = 10


class IdleConnections:
    """Kept-alive connections to the server on ``port``.

    Attributes:
        lost: connections that ended, or whose request got another status than 200.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.lost = 0
        self._connections: list[Connection] = []

    async def open(self, count: int) -> None:
        """Open ``count`` connections, each used once. Raises `OSError`."""
        raise_file_limit(count + SPARE_FILES)
        while len(self._connections) < count:
            wave = min(AT_ONCE, count - len(self._connections))
            opening = [Connection.open(self.port) for _ in range(wave)]
            self._connections += await asyncio.gather(*opening)
        await self.refresh()

    async def refresh(self, seconds: float = 0.0) -> None:
        """Send one request on each connection, over ``seconds``; count those lost, once each."""
        self._connections = [each for each in self._connections if not each.writer.is_closing()]
        waves = range(0, len(self._connections), AT_ONCE)
        for start in waves:
            wave = self._connections[start : start + AT_ONCE]
            await asyncio.gather(*map(self._refresh_one, wave))
            await asyncio.sleep(seconds / len(waves))

    async def keep(self) -> None:
        """Refresh the connections before the server would close them, until cancelled.

        Little by little: the requests are no load of their own.
        """
        while self._connections:
            await self.refresh(REFRESH_SECONDS)

    def close(self) -> None:
        """Close all connections."""
        while self._connections:
            self._connections.pop().close()

    async def _refresh_one(self, connection: Connection) -> None:
        with contextlib.suppress(Lost, OSError):
            if (await connection.ask(REQUEST)).status == 200:
                return
        self.lost += 1
        connection.close()


@contextlib.asynccontextmanager
async def idle_connections(port: int, count: int) -> AsyncIterator[IdleConnections]:
    """Hold ``count`` idle connections within the context; at its end `lost` is complete."""
    idle = IdleConnections(port)
    await idle.open(count)
    keeping = asyncio.create_task(idle.keep())
    try:
        yield idle
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await idle.refresh()
    finally:
        keeping.cancel()
        idle.close()
