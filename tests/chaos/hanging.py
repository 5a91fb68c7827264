"""A forward pass that never ends, under load."""

from __future__ import annotations

import asyncio

from tests.chaos.client import ask
from tests.chaos.harness import Arena, Crowd, free_slots, scrape, settle, total, until, wait_ready
from tests.chaos.oracle import Case, picture
from tests.chaos.results import Check, Found
from tests.server.engine import faulty
from tests.server.engine.faulty_server import HUNG_SECONDS

SLOTS = 32


async def run(arena: Arena) -> Found:
    """As often as wanted."""
    hang = Case("/classify?r=0", picture(0, faulty.HANG), frozenset({503}))
    statuses = []
    with arena.server(faulty=True, queue_limit=SLOTS, max_batch=8) as server:
        before = await scrape(server.port)
        crowd = Crowd(server.port, arena.oracle.draw, allowed={503}, pause=0.2)
        going = True
        load = asyncio.create_task(crowd.run(8, lambda: going))
        for _ in range(arena.times):
            reached = sum(crowd.tally.answered.values()) + 50

            def goes_on(reached: int = reached) -> bool:
                return sum(crowd.tally.answered.values()) > reached

            await until(goes_on, load=load)
            statuses.append((await ask(server.port, hang.request())).status)
            await wait_ready(server.port)
            arena.progress(1)
        going = False
        await load
        after = await settle(server.port)
        missing = SLOTS - await free_slots(server, SLOTS, arena.oracle.good[-1])
    tally = crowd.tally
    tally.answered["/classify", 503] += statuses.count(503)
    checks = (
        *tally.checks(),
        Check(
            "slowest answer beyond the hang timeout",
            tally.slowest - HUNG_SECONDS,
            "most",
            1.5,
            "s",
            timed=True,
        ),
        Check(
            "missed restarts", arena.times - total(after, "tome_engine_restarts_total"), "most", 0
        ),
        Check("leaked slots", missing, "most", 0),
    )
    lost = tally.lost + tally.miscounted(before, after) + sum(status != 503 for status in statuses)
    return Found(
        "hang", "a forward pass that hangs, under load", arena.times, "times", lost, checks
    )
