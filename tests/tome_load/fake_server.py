"""Servers that answer, stall or break off as a test of the load generator needs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def fake_server(answer: Answer) -> AsyncIterator[str]:
    """Read whole requests and call ``answer`` for each, with its number; yield the server's URL."""
    received = 0
    writers = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        writers.add(writer)
        try:
            while True:
                await read_request(reader)
                number = received
                received += 1
                await answer(number, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.sleep(0)


async def read_request(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    for line in head.split("\r\n"):
        name, _, value = line.partition(": ")
        if name == "Content-Length":
            await reader.readexactly(int(value))


async def always_ok(number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)
