"""Answers that come before the end of the body, on connections that then close."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from server.api.transport import lingering
from server.api.transport.lingering import LingerLimits
from server.api.transport.protocol import MAX_REFUSED
from server.system.stop_plan import StopPlan
from tests.server.api.transport.in_loop import Listening, listening, run, until
from tests.server.wire import read_response

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
HEAD = b"POST / HTTP/1.0\r\nContent-Length: 100000000\r\n\r\n"
WAITING_HEAD = HEAD.replace(b" / ", b" /wait ")
ANSWER = b"no"


def exchange(connection: socket.socket, head: str, size: int) -> int:
    """Send a request with a body of ``size`` bytes, all of it before reading; return the status."""
    connection.sendall(f"{head}\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
    connection.sendall(b"x" * size)
    status = read_response(connection).status_code
    assert connection.recv(1) == b""  # closed, and not reset
    return status


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /classify?r=x HTTP/1.0", 422),
        ("POST /classify?r=x HTTP/1.1\r\nConnection: close", 422),
        ("POST /classify?model=none HTTP/1.0", 404),
        ("POST /nothing HTTP/1.0", 404),
        ("POST /healthz HTTP/1.0", 405),
        ("POST /classify HTTP/1.0", 413),
        ("POST /classify HTTP/1.1", 413),
        ("POST /classify HTTP/7.7", 400),
    ],
)
@pytest.mark.parametrize("size", [3_000_000, 15_000_000])
def test_a_client_that_sends_all_before_it_reads_gets_its_answer(server, head, status, size):
    with server.connect() as connection:
        assert exchange(connection, head, size) == status


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer at once; on the path /wait only after a body has begun."""
    if scope["path"] == "/wait":
        await receive()
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 422, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


async def begin_lingering(server: Listening) -> None:
    """Let a client send the head of a request, and nothing more once it is answered."""
    _, writer = await server.connect()
    writer.write(HEAD)
    await until(lambda: server.registry.lingering)


async def begin_waiting(server: Listening) -> None:
    """Let a client send a request that is not answered."""
    _, writer = await server.connect()
    writer.write(WAITING_HEAD)
    await until(lambda: server.http.server_state.tasks)


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_the_end_of_the_answer_shows_before_the_client_has_sent_its_body(loop_factory):
    async def test() -> None:
        async with listening(answer, LingerLimits()) as server:
            reader, writer = await server.connect()
            writer.write(HEAD)
            assert (await reader.read()).endswith(ANSWER)  # up to the end of the stream
            assert len(server.registry.lingering) == 1
            writer.write(b"x" * 1_000_000)
            await writer.drain()
            writer.close()
            await until(lambda: not server.http.server_state.connections)
            assert not server.registry.lingering

    run(loop_factory, test())


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_bytes_are_read_up_to_a_bound(loop_factory):
    async def test() -> None:
        async with listening(answer, LingerLimits(seconds=600, size=1_000_000)) as server:
            reader, writer = await server.connect()
            writer.write(HEAD)
            await reader.read()
            with pytest.raises(ConnectionError):
                for _ in range(1_000):
                    writer.write(b"x" * 100_000)
                    await writer.drain()

    run(loop_factory, test())


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_body_that_never_ends_is_read_for_a_limited_time(loop_factory):
    async def test() -> None:
        async with listening(answer, LingerLimits(seconds=0.3)) as server:
            reader, writer = await server.connect()
            writer.write(HEAD)
            await reader.read()
            with pytest.raises(ConnectionError):
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.02)

    run(loop_factory, test())


def test_a_client_that_sends_nothing_more_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(lingering, "IDLE_SECONDS", 0.1)

    async def test() -> None:
        async with listening(answer, LingerLimits(seconds=600)) as server:
            await begin_lingering(server)
            await until(lambda: not server.http.server_state.connections)

    run(uvloop.new_event_loop, test())


def test_a_stop_waits_for_it_only_shortly(monkeypatch):
    monkeypatch.setattr(lingering, "IDLE_SECONDS", 600)

    async def test() -> None:
        async with listening(answer, LingerLimits(seconds=600)) as server:
            server.registry.stop_plan = StopPlan(linger=0.1)
            await begin_lingering(server)
            (connection,) = server.http.server_state.connections
            connection.shutdown()
            await until(lambda: not server.http.server_state.connections)

    run(uvloop.new_event_loop, test())


def test_at_the_limit_a_new_connection_replaces_the_one_that_only_reads_on():
    async def test() -> None:
        async with listening(answer, LingerLimits(), max_connections=2) as server:
            await begin_waiting(server)
            for _ in range(3):
                reader, writer = await server.connect()
                writer.write(HEAD)
                assert b" 422 " in await reader.read()
                assert len(server.registry.lingering) == 1

    run(uvloop.new_event_loop, test())


def test_a_limited_number_of_refused_connections_reads_on():
    async def test() -> None:
        async with listening(answer, LingerLimits(), max_connections=1) as server:
            await begin_waiting(server)
            refused = [await server.connect() for _ in range(MAX_REFUSED + 3)]
            for reader, writer in refused:
                writer.write(HEAD)
                assert b" 503 " in await reader.read()
            assert len(server.registry.refused) == MAX_REFUSED

    run(uvloop.new_event_loop, test())
