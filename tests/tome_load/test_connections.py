"""Connections are used again, limited in number, and replaced once they are closed."""

from __future__ import annotations

import asyncio

import pytest

from tests.server.conftest import free_port
from tests.tome_load.fake_server import OK, always_ok, fake_server
from tome_load.connection import NoAnswer
from tome_load.connections import Connections

REQUEST = (b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n", b"x")


def test_an_idle_connection_is_used_again() -> None:
    async def main() -> None:
        async with fake_server(always_ok) as url:
            pool = Connections(url, limit=2, timeout=5)
            first = await pool.acquire()
            assert (await first.exchange(REQUEST, 5))[:2] == (200, b"{}")
            pool.release(first)
            assert await pool.acquire() is first
            assert pool.opened == 1

    asyncio.run(main())


def test_a_closed_connection_is_replaced() -> None:
    async def answer_and_close(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))

    async def main() -> None:
        async with fake_server(answer_and_close) as url:
            pool = Connections(url, limit=1, timeout=5)
            first = await pool.acquire()
            await first.exchange(REQUEST, 5)
            pool.release(first)
            assert await pool.acquire() is not first
            with pytest.raises(NoAnswer, match="the connection is closed"):
                await first.exchange(REQUEST, 5)

    asyncio.run(main())


def test_the_limit_makes_further_requests_wait() -> None:
    async def main() -> None:
        async with fake_server(always_ok) as url:
            pool = Connections(url, limit=1, timeout=5)
            first = await pool.acquire()
            second = asyncio.create_task(pool.acquire())
            await asyncio.sleep(0.05)
            assert not second.done()
            pool.release(first)
            assert await second is first

    asyncio.run(main())


def test_a_failed_connection_frees_its_place() -> None:
    async def main() -> None:
        pool = Connections(f"http://127.0.0.1:{free_port()}", limit=1, timeout=5)
        for _ in range(2):
            with pytest.raises(NoAnswer, match="Connection refused") as caught:
                await pool.acquire()
            assert caught.value.kind == "connect"
        assert pool.opened == 0

    asyncio.run(main())
