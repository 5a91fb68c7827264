"""Messages over a socket pair: a length, then a pickle of one of our own dataclasses.

Pickle is safe here and nowhere else: the pair is private to two processes of ours, inherited, with
no name that anyone could connect to.
"""

from __future__ import annotations

import asyncio
import pickle
import select
import socket
import struct
from typing import Any

from server.ipc.engine_config import EngineConfig
from server.ipc.messages import FromEngine, ToEngine

_LENGTH = struct.Struct("!I")


class ChannelClosed(Exception):
    """The other process has closed its end, or has ended."""


def pack(message: Any) -> bytes:
    """A message as the bytes that go over the wire."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class Channel:
    """The engine's end: blocking, used by one thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._received: list[Any] = []

    def send(self, message: Any) -> None:
        """Send one message. Raises `ChannelClosed`."""
        try:
            self._socket.sendall(pack(message))
        except OSError as error:
            raise ChannelClosed from error

    def receive(self) -> Any:
        """The next message, waiting for it. Raises `ChannelClosed`."""
        if not self._received:
            self._received = self.receive_all(timeout=None)
        return self._received.pop(0)

    def receive_all(self, timeout: float | None) -> list[Any]:
        """All messages that are here; if there is none, wait up to ``timeout`` seconds for one (None: for ever).

        Raises:
            ChannelClosed: the other end is gone, and all it had sent has been returned.
        """
        messages = self._received + self._unpack()
        self._received = []
        wait = 0.0 if messages else timeout
        while select.select([self._socket], [], [], wait)[0]:
            try:
                chunk = self._socket.recv(1 << 20)
            except OSError:
                chunk = b""
            if not chunk:
                if messages:
                    return messages
                raise ChannelClosed
            self._buffer += chunk
            messages += self._unpack()
            wait = 0.0 if messages else timeout
        return messages

    def _unpack(self) -> list[Any]:
        messages = []
        begin = _LENGTH.size
        there = len(self._buffer)
        with memoryview(self._buffer) as view:
            while begin <= there:
                end = begin + _LENGTH.unpack_from(view, begin - _LENGTH.size)[0]
                if end > there:
                    break
                messages.append(pickle.loads(view[begin:end]))
                begin = end + _LENGTH.size
        del self._buffer[: begin - _LENGTH.size]
        return messages


class AsyncChannel:
    """The API's end: asyncio streams. Writing never blocks; what waits to be sent is bounded by the slots."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, connection: socket.socket) -> AsyncChannel:
        """Take over ``connection``."""
        return cls(*await asyncio.open_unix_connection(sock=connection))

    def send(self, message: EngineConfig | ToEngine) -> None:
        """Queue one message for sending; one that the engine will never read is dropped silently."""
        if not self._writer.transport.is_closing():
            self._writer.write(pack(message))

    async def receive(self) -> FromEngine:
        """The next message. Raises `ChannelClosed`."""
        try:
            (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            message: FromEngine = pickle.loads(await self._reader.readexactly(size))
            return message
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ChannelClosed from error

    def close(self) -> None:
        """Close this end; the engine notices and ends."""
        self._writer.close()
