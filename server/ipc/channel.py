"""Messages over a socket pair between API process and engine process, and how they are packed.

A message is a length, 4 bytes in network byte order, and the pickle of a class of
`server.ipc.messages`. Pickle is safe here: the engine process inherits its socket from the API
process, and the pair has no name, so that no other process can connect to it.

Every image needs a `Job` and an `Outcome`, thousands per second on a GPU. So both are pickled as
plain tuples, and `copyreg` replaces the name of the function that rebuilds them by a number.
"""

from __future__ import annotations

import asyncio
import copyreg
import pickle
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from typing import Any, TypeVar

from server.ipc.engine_config import EngineConfig
from server.ipc.messages import BatchDone, Job, Outcome, ToEngine
from tome_core.schedule import Schedule

Message = TypeVar("Message")

_LENGTH = struct.Struct("!I")
_CHUNK_BYTES = 1 << 20  # most bytes of one receive call
# poll() waits for whole milliseconds. A loop with a batch on a GPU waits for less.
_POLL_RESOLUTION = 0.001

# Extension codes of pickle; `copyreg` reserves 240 to 255 for private use.
_JOB_CODE = 0xF0
_BATCH_DONE_CODE = 0xF1


class ChannelClosed(Exception):
    """The other process has closed its end of the socket pair, or has ended."""


class BadMessage(Exception):
    """The other process has sent something that is no message, or none that is expected."""


def check_type(message: object, expected: type[Message]) -> Message:
    """Return ``message``. Raises `BadMessage` unless it is an ``expected`` one."""
    if not isinstance(message, expected):
        raise BadMessage(f"{type(message).__name__} was received, not {expected.__name__}")
    return message


def pack(message: Any) -> bytes:
    """Return a message as bytes: its length and its pickle."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


def unpack(body: bytes | memoryview) -> object:
    """Return the message whose pickle is ``body``. Raises `BadMessage`."""
    try:
        return pickle.loads(body)
    except Exception as error:  # whatever its content makes pickle or a constructor raise
        raise BadMessage(f"a message of {len(body)} bytes cannot be read: {error}") from error


def _reduce_job(job: Job) -> tuple[Callable[..., Job], tuple[Any, ...]]:
    texts = " ".join(map(str, job.choices))
    return restore_job, (job.id, job.slot, job.model, texts, *job[4:])


def restore_job(number: int, slot: int, model: str, choices: str, *others: Any) -> Job:
    """Return a job from its pickled fields, with the schedules as text.

    Jobs with the same text share one tuple of schedules.
    """
    return Job(number, slot, model, _parse_schedules(choices), *others)


@lru_cache(maxsize=1024)
def _parse_schedules(texts: str) -> tuple[Schedule, ...]:
    return tuple(map(Schedule.parse, texts.split(" ")))


def _reduce_batch_done(batch: BatchDone) -> tuple[Callable[..., BatchDone], tuple[Any, ...]]:
    model, outcomes, *others = [getattr(batch, field.name) for field in fields(batch)]
    return restore_batch_done, (model, list(map(tuple, outcomes)), *others)


def restore_batch_done(model: str, outcomes: list[tuple[Any, ...]], *others: Any) -> BatchDone:
    """Return a batch from its pickled fields, with the outcomes as plain tuples."""
    return BatchDone(model, tuple(map(Outcome._make, outcomes)), *others)


copyreg.pickle(Job, _reduce_job)
copyreg.pickle(BatchDone, _reduce_batch_done)
copyreg.add_extension(__name__, restore_job.__name__, _JOB_CODE)
copyreg.add_extension(__name__, restore_batch_done.__name__, _BATCH_DONE_CODE)


class Channel:
    """The engine's end of the socket pair: blocking, for a single thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        # Not select(), which refuses descriptors from 1024 on (POSIX, FD_SETSIZE).
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._buffer = bytearray()
        self._received: list[Any] = []

    def send(self, message: Any) -> None:
        """Send one message.

        Raises:
            ChannelClosed: the other end is closed.
        """
        try:
            self._socket.sendall(pack(message))
        except OSError as error:
            raise ChannelClosed from error

    def receive(self) -> Any:
        """Wait for the next message and return it, whatever it is.

        Raises:
            ChannelClosed: the other end is closed, and no message is left.
            BadMessage: something else has arrived.
        """
        if not self._received:
            self._received = self.receive_all(timeout=None)
        return self._received.pop(0)

    def receive_all(self, timeout: float | None) -> list[Any]:
        """Return all messages that have arrived; if there are none, wait for at least one.

        Args:
            timeout: most seconds to wait; None for no limit.

        Raises:
            ChannelClosed: the other end is closed, and no message is left.
            BadMessage: something else has arrived.
        """
        messages = self._received + self._unpack()
        self._received = []
        while self._is_readable(timeout=0.0 if messages else timeout):
            chunk = self._receive_chunk()
            if not chunk:
                if messages:
                    return messages
                raise ChannelClosed
            self._buffer += chunk
            messages += self._unpack()
        return messages

    def _is_readable(self, timeout: float | None) -> bool:
        """Wait up to ``timeout`` seconds until bytes have arrived or the other end is closed."""
        if timeout is None:
            return bool(self._poll.poll())
        if 0 < timeout < _POLL_RESOLUTION:
            time.sleep(timeout)
            timeout = 0.0
        return bool(self._poll.poll(timeout * 1000))

    def _receive_chunk(self) -> bytes:
        """Return bytes that have arrived; none if the other end is closed."""
        try:
            return self._socket.recv(_CHUNK_BYTES)
        except OSError:
            return b""

    def _unpack(self) -> list[Any]:
        """Remove all complete messages from the buffer and return them."""
        messages = []
        available = len(self._buffer)
        start = 0
        with memoryview(self._buffer) as view:
            while start + _LENGTH.size <= available:
                (size,) = _LENGTH.unpack_from(view, start)
                body = start + _LENGTH.size
                end = body + size
                if end > available:
                    break
                messages.append(unpack(view[body:end]))
                start = end
        del self._buffer[:start]
        return messages


class AsyncChannel:
    """The API's end of the socket pair, for asyncio.

    Sending never waits: the number of slots bounds the messages that are not sent yet.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, connection: socket.socket) -> AsyncChannel:
        """Return a channel that owns ``connection``."""
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        return cls(reader, writer)

    def send(self, message: EngineConfig | ToEngine) -> None:
        """Queue one message for sending; drop it if the channel is closed."""
        if not self._writer.transport.is_closing():
            self._writer.write(pack(message))

    async def receive(self) -> object:
        """Wait for the next message and return it, whatever it is.

        Raises:
            ChannelClosed: the engine has closed its end, or has ended.
            BadMessage: something else has arrived.
        """
        try:
            length = await self._reader.readexactly(_LENGTH.size)
            (size,) = _LENGTH.unpack(length)
            body = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ChannelClosed from error
        return unpack(body)

    def close(self) -> None:
        """Close this end; the engine process then ends."""
        self._writer.close()
