"""Broken files, bombs and wrong parameters between good images: the bad ones are refused, each
alone.
"""

from __future__ import annotations

import random
from typing import Any

from tests.chaos.harness import Arena, Crowd, countdown, scrape, settle
from tests.chaos.oracle import Case, picture
from tests.chaos.results import Check, Found
from tests.hostile.files import FILES, MAX_BYTES, MAX_PIXELS, MAX_SIDE

BAD = 0.3
WRONG = {
    "r=9": 422,
    "r=x": 422,
    "model=none": 404,
    "top_k=4": 422,
    "deadline_ms=0": 422,
    "what=1": 422,
}
# For which the statuses are right.
LIMITS: dict[str, Any] = {
    "max_body_bytes": MAX_BYTES,
    "max_pixels": MAX_PIXELS,
    "max_side": MAX_SIDE,
}


def bad_images() -> list[Case]:
    """Requests to the model of images, each of which has to be refused."""
    files = [
        Case("/classify?r=2", body, frozenset({status}))
        for _, body, status in FILES
        if status != 200
    ]
    queries = [
        Case(f"/classify?{query}", picture(0), frozenset({status}))
        for query, status in WRONG.items()
    ]
    return files + queries


async def run(arena: Arena) -> Found:
    """As many requests as wanted; 30% of them are bad."""
    oracle = arena.oracle
    good = [oracle.case(body, "3", embed=True) for _, body, status in FILES if status == 200]
    bad = bad_images()

    def draw(random: random.Random) -> Case:
        if random.random() < BAD:
            return random.choice(bad)
        return random.choice(good) if random.random() < 0.2 else oracle.draw(random)

    with arena.server(max_batch=8, **LIMITS) as server:
        before = await scrape(server.port)
        crowd = Crowd(server.port, draw)
        await crowd.run(16, countdown(arena.times), arena.progress)
        after = await settle(server.port)
    tally = crowd.tally
    refused = sum(count for (_, status), count in tally.answered.items() if 400 <= status < 500)
    checks = [
        *tally.checks(),
        Check("share of bad requests", refused / arena.times, "least", BAD - 0.1),
    ]
    lost = tally.lost + tally.miscounted(before, after)
    return Found(
        "poison",
        f"{len(bad)} kinds of bad requests among good ones",
        arena.times,
        "requests",
        lost,
        tuple(checks),
    )
