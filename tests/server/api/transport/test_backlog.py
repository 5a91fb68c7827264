"""A socket without new connections: pending ones are accepted, others refused once it is closed."""

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

from server.api.transport.addresses import listen
from server.api.transport.backlog import drop_new_connections
from server.api.transport.listener import HttpServer, http_config
from server.api.transport.protocol import ConnectionRegistry
from server.errors import RequestError


def filters_work() -> bool:
    """Whether socket filters have an effect here: on Linux only, and not in every sandbox."""
    if sys.platform != "linux":
        return False
    with socket.create_server(("127.0.0.1", 0)) as listener:
        drop_new_connections(listener)
        try:
            socket.create_connection(listener.getsockname(), 0.3).close()
        except TimeoutError:
            return True
    return False


pytestmark = pytest.mark.skipif(
    not filters_work(), reason="socket filters have no effect on this system"
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
def test_a_pending_connection_is_accepted_and_no_new_one(host: str) -> None:
    with listening(host) as listener:
        address = listener.getsockname()[:2]
        with socket.create_connection(address, 5) as pending:
            pending.sendall(b"request")
            drop_new_connections(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, 0.3)
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(100) == b"request"
                pending.sendall(b" and more")
                assert accepted.recv(100) == b" and more"
                accepted.sendall(b"answer")
                assert pending.recv(100) == b"answer"
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_a_dropped_client_reaches_the_next_server() -> None:
    """The kernel retransmits the SYN after a second: the old socket is closed by then."""
    with listening("127.0.0.1") as listener, socket.socket() as late:
        address = listener.getsockname()
        drop_new_connections(listener)
        late.setblocking(False)
        late.connect_ex(address)
        listener.close()
        with socket.create_server(address) as successor:
            successor.settimeout(10)
            accepted, address_of_client = successor.accept()
            accepted.close()
            assert address_of_client == late.getsockname()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_server_that_stops_answers_all_pending_connections(loop_factory) -> None:
    """Even with a busy loop: uvloop accepts one connection an iteration."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
        )
        await send({"type": "http.response.body", "body": b"ok"})

    refusals: list[RequestError] = []

    async def serve(clients: contextlib.ExitStack) -> list[bytes]:
        (listener,) = listen(["127.0.0.1"], 0)
        limits = ConnectionRegistry(
            max_connections=100, header_timeout=10, send_timeout=10, on_refusal=refusals.append
        )
        config = http_config(app, limits)
        config.load()
        server = HttpServer(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup([listener])
        pending = [
            clients.enter_context(socket.create_connection(listener.getsockname(), 5))
            for _ in range(20)
        ]
        for client in pending:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        asyncio.get_running_loop().call_soon(time.sleep, 0.5)  # a busy loop
        await server.shutdown([listener])
        return [client.recv(65536) for client in pending]

    with contextlib.ExitStack() as clients, asyncio.Runner(loop_factory=loop_factory) as runner:
        answers = runner.run(serve(clients))
    assert [answer.split(b" ")[1] for answer in answers] == [b"200"] * 20
    assert refusals == []
