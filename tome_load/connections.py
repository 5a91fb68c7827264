"""A pool of keep-alive connections, with as many as there are requests in flight, up to a limit."""

from __future__ import annotations

import asyncio
import os
from urllib.parse import urlsplit

from server.system.unix_http import socket_path
from tome_load.connection import Connection, NoAnswer


class Connections:
    """A pool of at most ``limit`` connections to the server at ``url``.

    Attributes:
        opened: number of connections opened so far.
    """

    def __init__(self, url: str, limit: int, timeout: float) -> None:
        self._socket_path = socket_path(url)
        parts = urlsplit(url)
        self._tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        default_port = 443 if self._tls else 80
        self._port = parts.port or default_port
        self._timeout = timeout
        self._free = asyncio.Semaphore(limit)
        self._idle: list[Connection] = []
        self.opened = 0

    async def acquire(self) -> Connection:
        """Return an open connection for one request; first come, first served.

        Raises:
            NoAnswer: a connection could not be opened.
        """
        await self._free.acquire()
        try:
            # Take the connection used last. A server under little load then sees few connections,
            # and the others may time out.
            while self._idle:
                connection = self._idle.pop()
                if connection.usable:
                    return connection
            return await self._open()
        except BaseException:
            self._free.release()
            raise

    def release(self, connection: Connection) -> None:
        """Return a connection to the pool after its request."""
        if connection.usable:
            self._idle.append(connection)
        self._free.release()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _open(self) -> Connection:
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._connect()
        except TimeoutError:
            raise NoAnswer("connect", f"no connection within {self._timeout:g} s") from None
        except OSError as error:
            raise NoAnswer("connect", _error_text(error)) from error
        self.opened += 1
        return connection

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        if self._socket_path is not None:
            _, connection = await loop.create_unix_connection(
                self._new_connection, self._socket_path
            )
            return connection
        _, connection = await loop.create_connection(
            self._new_connection,
            self._host,
            self._port,
            ssl=True if self._tls else None,
        )
        return connection

    def _new_connection(self) -> Connection:
        return Connection(on_lost=self._forget)

    def _forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)


def _error_text(error: OSError) -> str:
    """Return the system's text for ``error``, which asyncio replaces by one of its own."""
    # The error of a host name that is not found has no number of the system.
    if error.errno is None or error.errno <= 0:
        return str(error)
    return os.strerror(error.errno)
