"""Storms of connections that send nothing, send slowly, or come and go, beside good clients."""

from __future__ import annotations

import asyncio
import contextlib
import random

from tests.chaos.client import PATIENCE, Connection
from tests.chaos.harness import (
    Arena,
    Crowd,
    files_lost,
    open_files,
    resident_mib,
    scrape,
    settle,
    until,
)
from tests.chaos.results import Check, Found

BOUND = 256
HEADER_SECONDS = 2.0
HELD = 4 * BOUND


async def run(arena: Arena) -> Found:
    """As many connections as wanted, up to four times as many at once as the server takes."""
    chance = random.Random(2)
    most_open = 0
    overdue = 0
    with arena.server(max_connections=BOUND, header_timeout=HEADER_SECONDS, max_batch=8) as server:
        crowd = Crowd(server.port, arena.oracle.draw)
        storm = True
        await crowd.run(
            4, lambda: sum(crowd.tally.answered.values()) < 200
        )  # so that memory has its usual size
        before = await scrape(server.port)
        files = open_files(server)
        memory = resident_mib(*server.front_end())
        crowd = Crowd(server.port, arena.oracle.draw)
        beside = asyncio.create_task(crowd.run(4, lambda: storm))

        # Their connections are open and have been used before the storm comes.
        await until(lambda: crowd.tally.of(200) >= 8, load=beside)

        async def one() -> None:
            nonlocal overdue
            with contextlib.suppress(OSError):
                connection = await Connection.open(server.port)
                try:
                    await pester(connection, chance)
                except TimeoutError:
                    overdue += 1
                finally:
                    connection.close(reset=chance.random() < 0.3)

        opened = 0
        while opened < arena.times:
            wave = min(HELD, arena.times - opened)
            async with asyncio.TaskGroup() as group:
                for _ in range(wave):
                    group.create_task(one())
                await asyncio.sleep(HEADER_SECONDS / 2)
                most_open = max(most_open, open_files(server) - files)
            opened += wave
            arena.progress(wave)
        storm = False
        await beside
        after = await settle(server.port)
        grown = resident_mib(*server.front_end()) - memory
        leaked = await files_lost(server, files)
    tally = crowd.tally
    checks = (
        *tally.checks(),
        Check("most open connections", most_open, "most", BOUND + 16),
        Check("silent connections left open", overdue, "most", 0),
        Check("slowest answer to a good client", tally.slowest, "most", 2.0, "s", timed=True),
        Check("memory growth", grown, "most", 20, "MiB"),
        Check("leaked file descriptors", leaked, "most", 0),
    )
    lost = tally.lost + tally.miscounted(before, after)
    return Found(
        "connections",
        "idle, slow and short-lived connections",
        arena.times,
        "connections",
        lost,
        checks,
    )


async def pester(connection: Connection, chance: random.Random) -> None:
    """Hold ``connection`` until the server ends it: in silence, or a byte at a time; or leave at
    once.

    Raises `TimeoutError` if the server holds it for ever.
    """
    match chance.randrange(3):
        case 0:
            async with asyncio.timeout(PATIENCE):
                await connection.reader.read()
        case 1:
            for byte in b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 1000:
                connection.writer.write(bytes([byte]))
                await asyncio.sleep(HEADER_SECONDS / 8)
                if connection.reader.at_eof() or connection.reader.exception():
                    return
        case _:
            await asyncio.sleep(chance.random() / 10)
