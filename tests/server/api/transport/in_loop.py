"""A server of any application in the event loop of a test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp

from server.api.transport.lingering import LingerLimits
from server.api.transport.listener import HttpServer, http_config
from server.api.transport.protocol import ConnectionRegistry
from server.system.addresses import listen


@dataclass
class Listening:
    """A server in the event loop of the test, and its clients."""

    registry: ConnectionRegistry
    http: HttpServer
    port: int
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(writer)
        return reader, writer

    async def stop(self, listener: socket.socket) -> None:
        for writer in self.clients:
            writer.transport.abort()
        await self.http.shutdown([listener])
        await until(lambda: not self.registry.refused)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def listening(
    app: ASGIApp, limits: LingerLimits, max_connections: int = 100, host: str = "127.0.0.1"
) -> AsyncIterator[Listening]:
    registry = ConnectionRegistry(max_connections, 10, 10, lambda error: None, limits)
    config = http_config(app, registry, ["127.0.0.1"])
    config.load()
    http = HttpServer(config)
    http.lifespan = config.lifespan_class(config)
    (listener,) = listen([host], 0)
    await http.startup([listener])
    running = Listening(registry, http, listener.getsockname()[1])
    try:
        yield running
    finally:
        await running.stop(listener)


def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], test: Awaitable[None]) -> None:
    """Run ``test`` in a loop of its own, for 30 seconds at most."""

    async def limited() -> None:
        async with asyncio.timeout(30):
            await test

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(limited())


async def until(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds; `run` limits the time."""
    while not condition():
        await asyncio.sleep(0.01)
