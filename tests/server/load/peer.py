"""Servers that misbehave in a chosen way: what is tested with them is the generator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def peer(answer: Answer) -> AsyncIterator[str]:
    """A server that reads whole requests and calls ``answer`` for each, with its number; gives its
    address.
    """
    seen = 0
    writers = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    line.split(": ")[1]
                    for line in head.split("\r\n")
                    if line.startswith("Content-Length")
                )
                await reader.readexactly(int(length))
                seen += 1
                await answer(seen - 1, writer)
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


async def always_ok(number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)
