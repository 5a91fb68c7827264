"""Exceptions, NaN, memory that runs out, slow passes in the engine, under load: who shares a batch
does not notice.
"""

from __future__ import annotations

import random

from tests.chaos.harness import Arena, Crowd, countdown, free_slots, scrape, settle, total
from tests.chaos.oracle import Case, picture
from tests.chaos.results import Check, Found
from tests.server.engine import faulty

SLOTS = 64
BAD = 0.1
KINDS = {
    faulty.ERROR: 500,
    faulty.NAN: 500,
    faulty.ALONE_TOO_LARGE: 503,
    faulty.MEMORY: 200,
    faulty.SLOW: 200,
}


async def run(arena: Arena) -> Found:
    """As many requests as wanted; a tenth of them make the engine fail or dawdle."""
    bad = [
        Case(f"/classify?r={r}&top_k=3", picture(9, fault), frozenset({status}))
        for fault, status in KINDS.items()
        if status != 200
        for r in (0, 3)
    ]
    bad += [
        arena.oracle.case(picture(9, fault), r, True)
        for fault in (faulty.MEMORY, faulty.SLOW)
        for r in ("0", "3")
    ]

    def draw(random: random.Random) -> Case:
        return random.choice(bad) if random.random() < BAD else arena.oracle.draw(random)

    with arena.server(faulty=True, max_batch=16, queue_limit=SLOTS) as server:
        before = await scrape(server.port)
        crowd = Crowd(server.port, draw, cancels=0.02)
        await crowd.run(32, countdown(arena.times), arena.progress)
        after = await settle(server.port)
        missing = SLOTS - await free_slots(server, SLOTS, arena.oracle.good[-1])
    failures = {
        kind: total(after, "tome_batch_failures_total", kind=kind)
        for kind in ("error", "nan", "out-of-memory")
    }
    checks = (
        *crowd.tally.checks(),
        Check("leaked slots", missing, "most", 0),
        Check("failed batches of the rarest kind", min(failures.values()), "least", 1),
        Check("restarts", total(after, "tome_engine_restarts_total"), "most", 0),
    )
    lost = crowd.tally.lost + crowd.tally.miscounted(before, after)
    return Found(
        "faults",
        "10% of images raise, give NaN, run out of memory or are slow",
        arena.times,
        "requests",
        lost,
        checks,
    )
