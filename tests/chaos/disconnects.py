"""Clients that go away, at every point of a request, orderly or not, beside others that stay."""

from __future__ import annotations

import asyncio
import random

from tests.chaos.client import Connection
from tests.chaos.harness import (
    Arena,
    Crowd,
    files_lost,
    free_slots,
    open_files,
    scrape,
    settle,
    total,
)
from tests.chaos.results import Check, Found

SLOTS = 32
AT_ONCE = 100


async def run(arena: Arena) -> Found:
    """As many as wanted go away, a hundred at a time."""
    chance = random.Random(1)

    async def leave(port: int) -> None:
        connection = await Connection.open(port)
        request = arena.oracle.draw(chance).request()
        # Within the header, within the body, at once after it, or while the answer is made.
        connection.writer.write(
            request[
                : chance.choice(
                    (0, 20, request.index(b"\r\n\r\n") + 30, len(request), len(request))
                )
            ]
        )
        await asyncio.sleep(chance.choice((0, 0.002, 0.02)))
        connection.close(reset=chance.random() < 0.5)

    with arena.server(queue_limit=SLOTS, max_batch=8) as server:
        before = await scrape(server.port)
        files = open_files(server)
        crowd = Crowd(server.port, arena.oracle.draw, allowed={503})
        storm = True
        beside = asyncio.create_task(crowd.run(4, lambda: storm))
        left = 0
        while left < arena.times:
            wave = min(AT_ONCE, arena.times - left)
            await asyncio.gather(*(leave(server.port) for _ in range(wave)))
            left += wave
            arena.progress(wave)
        storm = False
        await beside
        after = await settle(server.port)
        missing = SLOTS - await free_slots(server, SLOTS, arena.oracle.good[-1])
        leaked = await files_lost(server, files)
    tally = crowd.tally
    cancelled = total(after, "tome_cancelled_total") - total(before, "tome_cancelled_total")
    checks = (
        *tally.checks(),
        Check("share counted as cancelled", cancelled / arena.times, "least", 0.2),
        Check("leaked slots", missing, "most", 0),
        Check("leaked file descriptors", leaked, "most", 0),
    )
    return Found(
        "disconnects",
        "mass disconnects beside 4 clients",
        arena.times,
        "disconnects",
        tally.lost,
        checks,
    )
