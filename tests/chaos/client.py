"""A bare HTTP client on asyncio streams: fast, and able to do what no library does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass

PATIENCE = 60.0


class Lost(Exception):
    """A request was sent, and the connection ended without an answer."""


@dataclass(frozen=True)
class Reply:
    """One answer; ``seconds`` from the request's first byte to the answer's last."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


def encode(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A whole request; ``x_request_id="1"`` is the header X-Request-ID."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection:
    """One connection, for one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.used = False

    @property
    def local_port(self) -> int:
        """The port at this end."""
        return int(self.writer.get_extra_info("sockname")[1])

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect. Raises `OSError`."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, request: bytes) -> Reply:
        """Send and receive. Raises `Lost`, or `TimeoutError` after `PATIENCE` seconds, which no
        request may take.
        """
        began = time.monotonic()
        try:
            self.writer.write(request)
            async with asyncio.timeout(PATIENCE):
                return await self._read(began)
        except (OSError, asyncio.IncompleteReadError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise Lost from error

    async def _read(self, began: float) -> Reply:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value
            for name, value in (line.split(": ", 1) for line in head[1:] if line)
        }
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        self.used = True
        return Reply(int(head[0].split(" ")[1]), headers, body, time.monotonic() - began)

    def close(self, reset: bool = False) -> None:
        """End the connection; with ``reset`` as a machine does that goes away in the middle."""
        with contextlib.suppress(OSError):
            if reset:
                self.writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.writer.transport.abort()
            else:
                self.writer.close()


async def ask(port: int, request: bytes) -> Reply:
    """One request on a connection of its own."""
    connection = await Connection.open(port)
    try:
        return await connection.ask(request)
    finally:
        connection.close()
