"""Mixed r, mixed endpoints, cancels: each answer belongs to its request."""

from __future__ import annotations

from tests.chaos.harness import Arena, Crowd, countdown, free_slots, scrape, settle
from tests.chaos.results import Check, Found

SLOTS = 24


async def run(arena: Arena) -> Found:
    """Send ``times`` requests from more clients than slots; a tenth of the clients disconnect."""
    with arena.server(queue_limit=SLOTS, max_batch=8) as server:
        before = await scrape(server.port)
        crowd = Crowd(server.port, arena.oracle.draw, allowed={503}, cancels=0.1)
        await crowd.run(32, countdown(arena.times), arena.progress)
        after = await settle(server.port)
        missing = SLOTS - await free_slots(server, SLOTS, arena.oracle.good[-1])
    tally = crowd.tally
    checks = [*tally.checks(), Check("leaked slots", missing, "most", 0)]
    lost = tally.lost + tally.miscounted(before, after)
    return Found(
        "identity",
        "32 clients with mixed `r`, 10% disconnect",
        arena.times,
        "requests",
        lost,
        tuple(checks),
    )
