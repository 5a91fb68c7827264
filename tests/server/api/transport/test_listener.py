"""How many connections the limit on open files allows, and those that wait when a socket closes."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Callable

import pytest
import uvloop

from server.api.transport.listener import OTHER_FILES, accept_pending, allow_connections

UNLIMITED = resource.RLIM_INFINITY


@pytest.fixture
def file_limits(monkeypatch):
    """Replace the process's limits on open files; the list has the last ones that were set."""
    limits: list[int] = []

    def set_limits(soft: int, hard: int) -> list[int]:
        limits[:] = [soft, hard]
        return limits

    def getrlimit(_: int) -> tuple[int, ...]:
        return tuple(limits)

    def setrlimit(_: int, new: tuple[int, int]) -> None:
        limits[:] = new

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    return set_limits


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "allowed"),
    [
        (1024, UNLIMITED, 2000 + OTHER_FILES, 2000),
        (1024, 4096, 2000 + OTHER_FILES, 2000),
        (1024, 1500, 1500, 1500 - OTHER_FILES),
        (10, 20, 20, 1),  # one connection is always allowed
        (4096, 4096, 4096, 2000),
        (UNLIMITED, UNLIMITED, UNLIMITED, 2000),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_the_hard_one(file_limits, soft, hard, raised, allowed):
    limits = file_limits(soft, hard)
    assert allow_connections(2000) == allowed
    assert limits == [raised, hard]


def test_fewer_connections_than_wanted_are_logged(file_limits, caplog):
    file_limits(200, 200)
    assert allow_connections(1000) == 200 - OTHER_FILES
    assert "allows only 72 connections" in caplog.text


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_all_pending_connections_are_accepted(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Even with a busy loop: uvloop accepts one connection an iteration."""

    async def serve(clients: contextlib.ExitStack) -> list[bytes]:
        def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"ok")
            writer.close()

        listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        address = listener.getsockname()
        server = await asyncio.start_server(answer, sock=listener)
        pending = [clients.enter_context(socket.create_connection(address, 5)) for _ in range(20)]
        asyncio.get_running_loop().call_soon(time.sleep, 0.3)  # a busy loop
        await accept_pending([listener], 10)
        # In threads: the loop has yet to answer.
        answers = await asyncio.gather(*(asyncio.to_thread(client.recv, 9) for client in pending))
        server.close()
        return answers

    with contextlib.ExitStack() as clients, asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(serve(clients)) == [b"ok"] * 20
