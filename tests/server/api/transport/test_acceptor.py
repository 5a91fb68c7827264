"""Connections to one listening socket, accepted by several event loops' worth of acceptors."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest

from server.api.transport import acceptor
from server.api.transport.acceptor import Acceptor, ConnectionBalance
from server.ipc.board import Board, BoardSize


class Greeting(asyncio.Protocol):
    """Says who has accepted the connection, and closes it."""

    def __init__(self, name: bytes) -> None:
        self.name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.name)
        transport.close()


async def who_accepts(listener: socket.socket) -> bytes:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    name = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return name


@contextlib.contextmanager
def accepting(
    listener: socket.socket, name: bytes, may_accept: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Accept connections over a descriptor of its own, as another process has."""
    with listener.dup() as own:
        one = Acceptor(own, lambda: Greeting(name), may_accept)
        yield
        one.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_who_has_more_connections_leaves_the_next_one_to_others(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After its time it would take whichever connection waits.
    monkeypatch.setattr(acceptor, "_YIELD_SECONDS", 60.0)

    async def main() -> set[bytes]:
        with accepting(listener, b"full", lambda: False), accepting(listener, b"free"):
            return {await who_accepts(listener) for _ in range(20)}

    assert asyncio.run(main()) == {b"free"}


def test_a_connection_that_nobody_else_takes_is_accepted(listener: socket.socket) -> None:
    async def main() -> bytes:
        with accepting(listener, b"full", lambda: False):
            return await who_accepts(listener)

    assert asyncio.run(main()) == b"full"


def test_after_its_end_connections_wait_for_another(listener: socket.socket) -> None:
    async def main() -> bytes:
        with accepting(listener, b"first"):
            pass
        waiting = asyncio.create_task(who_accepts(listener))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        with accepting(listener, b"second"):
            return await waiting

    assert asyncio.run(main()) == b"second"


def test_the_balance_counts_the_processes_that_accept() -> None:
    board = Board.create(BoardSize(engines=1, workers=3, slots=3))
    first, second = (ConnectionBalance(board, worker) for worker in (0, 1))
    for worker in (0, 1):
        board.workers[worker].set_accepting(True)
    assert first.has_fewest(2) is False  # the second has none
    assert second.has_fewest(2)
    assert second.has_fewest(3) is False
    board.workers[0].clear()  # it has ended
    assert second.has_fewest(3)
