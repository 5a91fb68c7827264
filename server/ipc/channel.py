"""The engine's ends of the socket pairs between the processes of a server.

`server.ipc.packing` says what a message is. `server.ipc.control_channel` has the ends of the parent
and of an API process that are connected with each other or with an engine, and
`server.engine_client.link` an API process's end of its channel to an engine.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import Any

from server.ipc.packing import Unpacker, pack

_PIECE_BYTES = 1 << 18  # most bytes of one receive call
_DESCRIPTOR = struct.Struct("@i")
# For the descriptors of one receive call. Linux never returns those of several messages together.
_ANCILLARY_BYTES = socket.CMSG_SPACE(16 * _DESCRIPTOR.size)
# A peer that does not read is dropped when so much is unsent. Its slots bound what is: the outcomes
# of a batch of large features are megabytes.
_MOST_UNSENT_BYTES = 64 << 20
# poll() waits for whole milliseconds. A loop with a batch on a GPU waits for less.
_POLL_RESOLUTION = 0.001


class ChannelClosed(Exception):
    """The other process has closed its end of the socket pair, or has ended."""


def receive_piece(connection: socket.socket, unpacker: Unpacker) -> list[Any] | None:
    """Receive once, with descriptors, and return the messages that are complete.

    Returns:
        None if nothing has arrived at a socket that does not block.

    Raises:
        ChannelClosed: the other end is closed.
        BadMessage: something else has arrived.
    """
    try:
        # Not recv_fds(), which ignores its flags (CPython 3.11): child processes would inherit the
        # descriptors.
        piece, ancillary, _, _ = connection.recvmsg(
            _PIECE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        return None
    except OSError as error:
        raise ChannelClosed from error
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(data) - len(data) % _DESCRIPTOR.size
            unpacker.add_descriptors(number for (number,) in _DESCRIPTOR.iter_unpack(data[:whole]))
    if not piece:
        raise ChannelClosed
    return unpacker.messages(piece)


def wait_for(poll: select.poll, timeout: float | None) -> list[tuple[int, int]]:
    """Return what `poll` has to report, after at most ``timeout`` seconds; None for no limit."""
    if timeout is None:
        return poll.poll()
    if 0 < timeout < _POLL_RESOLUTION:
        time.sleep(timeout)
        timeout = 0.0
    return poll.poll(timeout * 1000)


class Channel:
    """The engine's end of a socket pair, for a single thread.

    Args:
        connection: blocking or not.
        descriptors: whether messages may come with descriptors. Otherwise the kernel drops those
            that the other process sends.
    """

    def __init__(self, connection: socket.socket, *, descriptors: bool = False) -> None:
        self._socket = connection
        self._takes_descriptors = descriptors
        # Not select(), which refuses descriptors from 1024 on (POSIX, FD_SETSIZE).
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._piece = memoryview(bytearray(_PIECE_BYTES))
        self._unpacker = Unpacker()
        self._received: list[Any] = []
        self._unsent = bytearray()

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether `post` has kept bytes that the kernel has not taken yet."""
        return bool(self._unsent)

    def send(self, message: Any) -> None:
        """Send one message, and wait until the kernel has taken it.

        Raises:
            ChannelClosed: the other end is closed.
        """
        self.post(pack(message))
        writable = select.poll()
        writable.register(self._socket, select.POLLOUT)
        while self._unsent:
            writable.poll()
            self.flush()

    def post(self, data: bytes) -> None:
        """Send packed messages without waiting: what the kernel does not take now is kept.

        Raises:
            ChannelClosed: the other end is closed, or its process does not read.
        """
        if len(self._unsent) > _MOST_UNSENT_BYTES:
            raise ChannelClosed
        if not self._unsent:
            data = data[self._send_now(data) :]
        self._unsent += data

    def flush(self) -> None:
        """Send what `post` has kept, as much as the kernel takes now.

        Raises:
            ChannelClosed: the other end is closed.
        """
        del self._unsent[: self._send_now(self._unsent)]

    def _send_now(self, data: bytes | bytearray) -> int:
        """Return how many bytes of ``data`` the kernel has taken."""
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
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
        messages = self._received
        self._received = []
        while wait_for(self._poll, 0.0 if messages else timeout):
            try:
                messages += self.receive_some()
            except ChannelClosed:
                if messages:
                    return messages
                raise
        return messages

    def receive_some(self) -> list[Any]:
        """Return messages that have arrived, by one receive call; there may be more, or none.

        Not those that `receive` has kept.

        Raises:
            ChannelClosed: the other end is closed.
            BadMessage: something else has arrived.
        """
        if self._takes_descriptors:
            return receive_piece(self._socket, self._unpacker) or []
        try:
            size = self._socket.recv_into(self._piece, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ChannelClosed from error
        if not size:
            raise ChannelClosed
        return self._unpacker.messages(self._piece[:size])

    def close(self) -> None:
        """Close this end."""
        self._unpacker.close()
        self._socket.close()
