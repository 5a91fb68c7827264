"""Accepting connections from a listening socket that several processes share.

The kernel wakes every process that waits for connections, and the first to accept gets one. A
process that has more connections than another leaves the next one to the others for a moment, so
that connections, and with them requests, spread over the processes. After that moment it accepts:
the others may be stopped or busy.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from server.ipc.board import Board

log = logging.getLogger("tome.server")

_YIELD_SECONDS = 0.005
_SHORTAGE_SECONDS = 1.0  # without files or memory for another connection
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ConnectionBalance:
    """Says whether this process has more connections than another one.

    Args:
        worker: index of this process.
    """

    def __init__(self, board: Board, worker: int) -> None:
        self._board = board
        self._row = board.workers[worker]

    def has_fewest(self, connections: int) -> bool:
        """Return whether no process has fewer than ``connections``, the number of this one."""
        self._row.set_connections(connections)
        return connections <= self._board.fewest_connections()


class Acceptor:
    """Accepts the connections of one listening socket, one each time the event loop waits.

    It has what uvicorn calls of an `asyncio.Server`.

    Args:
        create_protocol: of a connection.
        may_accept: whether this process is the one that should accept now.
    """

    def __init__(
        self,
        listener: socket.socket,
        create_protocol: Callable[[], asyncio.Protocol],
        may_accept: Callable[[], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._create_protocol = create_protocol
        self._may_accept = may_accept
        self._timer: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._closed = False
        listener.setblocking(False)
        self._loop.add_reader(listener, self._on_pending)

    def close(self) -> None:
        """Accept no more connections. The socket stays open."""
        self._closed = True
        self._loop.remove_reader(self._listener)
        if self._timer is not None:
            self._timer.cancel()

    async def wait_closed(self) -> None:
        """Return: a closed acceptor has nothing to wait for."""

    def _on_pending(self) -> None:
        if self._may_accept():
            self._accept()
        else:
            self._pause(_YIELD_SECONDS)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._listener, self._on_pending)
        self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return  # another process has accepted it, or its client is gone
        except OSError as error:
            if error.errno not in _SHORTAGES:
                raise
            log.error("no connection can be accepted: %s", error.strerror)
            return self._pause(_SHORTAGE_SECONDS)
        connection.setblocking(False)
        task = self._loop.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._create_protocol, connection)
        except OSError:
            connection.close()  # its client is gone
