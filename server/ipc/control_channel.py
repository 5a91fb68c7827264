"""An end of the socket pair between the parent process and one of its children, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from dataclasses import dataclass

from server.ipc.channel import ChannelClosed, receive_piece
from server.ipc.packing import Unpacker, WithDescriptor, pack

# A peer that does not read is dropped when so much is unsent.
_MOST_UNSENT_BYTES = 1 << 20


@dataclass
class _Unsent:
    """What the kernel has not taken yet of a message.

    Attributes:
        descriptor: a copy of the one that travels with the first of the bytes; None once it is
            sent.
    """

    data: bytes
    descriptor: int | None

    def close(self) -> None:
        """Close the descriptor."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class ControlChannel:
    """An end that sends and receives few messages, some of them with descriptors.

    It works on the socket itself, since the transports of asyncio and uvloop pass no descriptors.
    A running event loop is only needed where `receive` waits or `send` cannot send all at once, and
    not always the same one. One task at a time may receive.

    Args:
        connection: belongs to the channel from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._unpacker = Unpacker()
        self._received: deque[object] = deque()
        self._unsent: deque[_Unsent] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._writing_loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 after `close`."""
        return self._socket.fileno()

    def send(self, message: object, descriptor: int | None = None) -> None:
        """Send one message without waiting. It is dropped if the other end is closed.

        What the kernel does not take now is sent when it does. If a mebibyte is left over, the
        other process does not read, and the channel behaves as if that process had closed its end.

        Args:
            descriptor: of a socket that travels with the message. The caller may close it at once.
        """
        if self._closed:
            return
        if sum(len(unsent.data) for unsent in self._unsent) > _MOST_UNSENT_BYTES:
            self._give_up()
            return
        copy = None if descriptor is None else os.dup(descriptor)
        self._unsent.append(_Unsent(pack(message, has_descriptor=copy is not None), copy))
        self._flush()

    async def receive(self) -> tuple[object, socket.socket | None]:
        """Wait for the next message; return it, and the socket that came with it.

        Raises:
            ChannelClosed: the other end is closed, and no message is left; or this end is.
            BadMessage: something else has arrived.
        """
        while not self._received:
            if self._closed:
                raise ChannelClosed
            messages = receive_piece(self._socket, self._unpacker)
            if messages is None:
                await self._wait_until_readable()
            else:
                self._received.extend(messages)
        message = self._received.popleft()
        if isinstance(message, WithDescriptor):
            return message.message, message.connection
        return message, None

    def close(self) -> None:
        """Close this end; what is not sent yet is dropped. A task that receives is woken."""
        if self._closed:
            return
        self._closed = True
        self._drop_unsent()
        if self._waiting is not None:
            self._waiting.get_loop().remove_reader(self._socket)
            if not self._waiting.done():
                self._waiting.set_result(None)
        for message in self._received:
            if isinstance(message, WithDescriptor):
                message.connection.close()
        self._received.clear()
        self._unpacker.close()
        self._socket.close()

    async def _wait_until_readable(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()

        def wake() -> None:
            if not waiting.done():
                waiting.set_result(None)

        self._waiting = waiting
        loop.add_reader(self._socket, wake)
        try:
            await waiting
        finally:
            self._waiting = None
            if not self._closed:
                loop.remove_reader(self._socket)

    def _flush(self) -> None:
        """Send what the kernel takes now, and the rest when it takes more."""
        try:
            while self._unsent:
                self._send_first()
        except BlockingIOError:
            if self._writing_loop is None:
                self._writing_loop = asyncio.get_running_loop()
                self._writing_loop.add_writer(self._socket, self._flush)
            return
        except OSError:
            self._give_up()
            return
        self._stop_writing()

    def _send_first(self) -> None:
        first = self._unsent[0]
        if first.descriptor is None:
            sent = self._socket.send(first.data)
        else:
            sent = socket.send_fds(self._socket, [first.data], [first.descriptor])
            first.close()
        first.data = first.data[sent:]
        if not first.data:
            self._unsent.popleft()

    def _stop_writing(self) -> None:
        if self._writing_loop is not None:
            self._writing_loop.remove_writer(self._socket)
            self._writing_loop = None

    def _drop_unsent(self) -> None:
        self._stop_writing()
        for unsent in self._unsent:
            unsent.close()
        self._unsent.clear()

    def _give_up(self) -> None:
        """Drop the other process, which `receive` then finds closed."""
        self._drop_unsent()
        with contextlib.suppress(OSError):  # it may be closed already
            self._socket.shutdown(socket.SHUT_RDWR)
