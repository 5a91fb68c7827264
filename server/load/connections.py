"""The connections of a run: as many as there are requests under way, up to a limit, and used again."""

from __future__ import annotations

import asyncio
import os
from urllib.parse import urlsplit

from server.load.connection import Connection, NoAnswer


class Connections:
    """Connections to the server at ``url``, at most ``limit`` at once.

    Attributes:
        opened: how many have been opened so far.
    """

    def __init__(self, url: str, limit: int, timeout: float) -> None:
        parts = urlsplit(url)
        self._tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._timeout = timeout
        self._free = asyncio.Semaphore(limit)
        self._idle: list[Connection] = []
        self.opened = 0

    async def lease(self) -> Connection:
        """An open connection, for one request; first come, first served.

        Raises:
            NoAnswer: no connection could be opened.
        """
        await self._free.acquire()
        try:
            while self._idle:
                # The one used last: a quiet server then sees few connections, and the others may
                # time out.
                if (connection := self._idle.pop()).usable:
                    return connection
            return await self._open()
        except BaseException:
            self._free.release()
            raise

    def give_back(self, connection: Connection) -> None:
        """The request is over."""
        if connection.usable:
            self._idle.append(connection)
        self._free.release()

    def close(self) -> None:
        """End the idle ones."""
        while self._idle:
            self._idle.pop().close()

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._lost),
                    self._host,
                    self._port,
                    ssl=True if self._tls else None,
                )
        except TimeoutError:
            raise NoAnswer("connect", f"no connection within {self._timeout:g} s") from None
        except OSError as error:
            # asyncio writes its own words over the system's; a name that is not found has no number
            # of the system.
            known = (error.errno or 0) > 0
            raise NoAnswer(
                "connect", os.strerror(error.errno or 0) if known else str(error)
            ) from error
        self.opened += 1
        return connection

    def _lost(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
