"""A socket that begins no new connections: those that wait come through, others are refused once it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Iterator

import pytest
import uvloop

from server.api.handshakes import accept_the_last, drop_handshakes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="filters of sockets are Linux's")
HOSTS = ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6"))]


@contextlib.contextmanager
def listening(host: str) -> Iterator[socket.socket]:
    try:
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with listener:
        yield listener


@pytest.mark.parametrize("host", HOSTS)
def test_who_waits_comes_through_and_nobody_else(host: str) -> None:
    with listening(host) as listener:
        address = listener.getsockname()[:2]
        with socket.create_connection(address, 5) as early:
            early.sendall(b"request")
            drop_handshakes(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, 0.3)
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(100) == b"request"
                early.sendall(b" and more")
                assert accepted.recv(100) == b" and more"
                accepted.sendall(b"answer")
                assert early.recv(100) == b"answer"
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_who_was_dropped_reaches_the_next_server() -> None:
    """The kernel asks again, after a second: by then the old socket is gone."""
    with listening("127.0.0.1") as listener, socket.socket() as late:
        address = listener.getsockname()
        drop_handshakes(listener)
        late.setblocking(False)
        late.connect_ex(address)
        listener.close()
        with socket.create_server(address) as following:
            following.settimeout(10)
            accepted, where = following.accept()
            accepted.close()
            assert where == late.getsockname()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_is_late_accepts_all_who_wait(loop_factory) -> None:
    """uvloop accepts one in each turn, so however long one waits, a single turn that takes as long is not enough."""
    accepted = 0

    class Counting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal accepted
            accepted += 1
            transport.close()

    async def serve(listener: socket.socket, clients: contextlib.ExitStack) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Counting, sock=listener)
        for _ in range(20):
            clients.enter_context(socket.create_connection(listener.getsockname(), 5))
        loop.call_soon(time.sleep, 0.5)
        await accept_the_last([listener])
        server.close()
        await asyncio.sleep(0)

    with (
        listening("127.0.0.1") as listener,
        contextlib.ExitStack() as clients,
        asyncio.Runner(loop_factory=loop_factory) as runner,
    ):
        runner.run(serve(listener, clients))
    assert accepted == 20
