"""A socket that begins no new connections: those that wait come through, others are refused once it
is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Iterator

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from server.api.transport.handshakes import drop_handshakes
from server.api.transport.listener import HttpServer, http_config, listen
from server.api.transport.protocol import Bounds


def filters_work() -> bool:
    """Not on other systems than Linux, nor in every sandbox."""
    if sys.platform != "linux":
        return False
    with socket.create_server(("127.0.0.1", 0)) as listener:
        drop_handshakes(listener)
        try:
            socket.create_connection(listener.getsockname(), 0.3).close()
        except TimeoutError:
            return True
    return False


pytestmark = pytest.mark.skipif(
    not filters_work(), reason="this system does not filter what comes to a socket"
)
HOSTS = [
    "127.0.0.1",
    pytest.param("::1", marks=pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")),
]


@contextlib.contextmanager
def listening(host: str) -> Iterator[socket.socket]:
    try:
        listener = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
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
def test_a_server_that_ends_answers_all_who_have_connected(loop_factory) -> None:
    """However late its loop is: uvloop accepts one in each turn, and a single one may take as long
    as one waits.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
        )
        await send({"type": "http.response.body", "body": b"ok"})

    async def serve(clients: contextlib.ExitStack) -> list[bytes]:
        listener = listen("127.0.0.1", 0)
        config = http_config(app, Bounds(100, 10.0, 10.0, lambda error: None))
        config.load()
        server = HttpServer(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup([listener])
        waiting = [
            clients.enter_context(socket.create_connection(listener.getsockname(), 5))
            for _ in range(20)
        ]
        for client in waiting:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        asyncio.get_running_loop().call_soon(time.sleep, 0.5)
        await server.shutdown([listener])
        return [client.recv(65536) for client in waiting]

    with contextlib.ExitStack() as clients, asyncio.Runner(loop_factory=loop_factory) as runner:
        answers = runner.run(serve(clients))
    assert [answer.split(b" ")[1] for answer in answers] == [b"200"] * 20
