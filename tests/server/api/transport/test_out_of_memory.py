"""A process that has no memory for a body does not say that the request is malformed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from starlette.types import Receive, Scope, Send

from server.api.transport.lingering import LingerLimits
from server.api.transport.protocol import LimitedProtocol
from tests.server.api.transport.in_loop import listening, run


def test_the_connection_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(protocol: LimitedProtocol, body: bytes) -> None:
        raise MemoryError

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def ask() -> None:
        async with listening(answer, LingerLimits()) as server:
            reader, writer = await server.connect()
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""

    monkeypatch.setattr(LimitedProtocol, "on_body", fail)
    run(asyncio.new_event_loop, ask())
