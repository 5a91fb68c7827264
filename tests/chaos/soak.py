"""Minutes of everything at once, little of each: what a process holds must not grow."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.chaos.harness import (
    Arena,
    Crowd,
    Stopwatch,
    files_lost,
    open_files,
    resident_mib,
    scrape,
    settle,
    threads,
    total,
)
from tests.chaos.oracle import Case, picture
from tests.chaos.results import Check, Found
from tests.hostile.files import FILES, MAX_BYTES, MAX_PIXELS, MAX_SIDE
from tests.server.conftest import RunningServer
from tests.server.engine import faulty

CLIENTS = 4
SAMPLE_SECONDS = 2.0
WARM_SHARE = 0.25
WARM_REQUESTS = 100
REQUESTS = 300
PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class Sample:
    """What the server holds, ``seconds`` after the start and ``asked`` requests; memory in MiB.

    Memory, threads and files of the API processes are those of the parent, too.
    """

    seconds: float
    asked: int
    api: float
    engine: float
    threads: int
    files: int
    series: int


async def run(arena: Arena) -> Found:
    """For as many seconds as wanted, the first quarter of which is warm-up, but for a number of
    requests at least.
    """
    small = [(body, status) for _, body, status in FILES if len(body) < 50_000]
    bad = [
        Case("/classify?r=1", body, frozenset({status})) for body, status in small if status != 200
    ]
    bad += [
        Case("/classify?r=1", picture(5, fault), frozenset({500}))
        for fault in (faulty.ERROR, faulty.NAN)
    ]
    bad += [
        Case(f"/classify?r={r}&model=none{r}", picture(5), frozenset({404})) for r in range(100)
    ]
    others = [Case("/visualize?r=4", picture(6), frozenset({200}))]

    def draw(random: random.Random) -> Case:
        kind = random.random()
        return (
            random.choice(bad)
            if kind < 0.2
            else random.choice(others)
            if kind < 0.25
            else arena.oracle.draw(random)
        )

    limits: dict[str, Any] = {
        "max_body_bytes": MAX_BYTES,
        "max_pixels": MAX_PIXELS,
        "max_side": MAX_SIDE,
    }
    with arena.server(faulty=True, max_batch=8, **limits) as server:
        before = await scrape(server.port)
        watch = Stopwatch()
        crowd = Crowd(server.port, draw, allowed={503}, cancels=0.05, every=PAUSE_SECONDS)

        def goes_on() -> bool:
            return watch.seconds < arena.times or crowd.tally.asked < REQUESTS

        load = asyncio.create_task(crowd.run(CLIENTS, goes_on))
        samples: list[Sample] = []
        while not load.done():
            seconds = min(SAMPLE_SECONDS, arena.times / 20)
            await asyncio.sleep(seconds)
            samples.append(await sample(server, watch.seconds, crowd.tally.asked))
            arena.progress(
                round(watch.seconds) - round(samples[-2].seconds if len(samples) > 1 else 0)
            )
        await load
        after = await settle(server.port)
        leaked = await files_lost(server, samples[0].files)
    warm = [
        each
        for each in samples
        if each.seconds > WARM_SHARE * arena.times and each.asked >= WARM_REQUESTS
    ]
    return judge(arena, crowd, warm, leaked, crowd.tally.miscounted(before, after))


async def sample(server: RunningServer, seconds: float, asked: int) -> Sample:
    series = await scrape(server.port)
    engine = total(series, "tome_engine_resident_bytes") / (1 << 20)
    return Sample(
        seconds,
        asked,
        resident_mib(*server.front_end()),
        engine,
        threads(server),
        open_files(server),
        len(series),
    )


def slope(samples: list[Sample], value: str) -> float:
    """Per minute, by least squares."""
    minutes = [each.seconds / 60 for each in samples]
    return float(np.polyfit(minutes, [getattr(each, value) for each in samples], 1)[0])


def judge(arena: Arena, crowd: Crowd, warm: list[Sample], leaked: int, miscounted: int) -> Found:
    """The bars. Over less than a minute a slope says nothing, so there the growth itself is
    bounded.
    """
    tally = crowd.tally
    if arena.times >= 60:
        memory = [
            Check(f"memory growth of the {who}", slope(warm, who), "most", 1, "MiB/min")
            for who in ("api", "engine")
        ]
    else:
        memory = [
            Check(
                f"memory of the {who}, growth",
                getattr(warm[-1], who) - getattr(warm[0], who),
                "most",
                10,
                "MiB",
            )
            for who in ("api", "engine")
        ]
    checks = (
        *tally.checks(),
        *memory,
        Check(
            "threads beyond those after warm-up",
            max(each.threads for each in warm) - warm[0].threads,
            "most",
            0,
        ),
        Check(
            "metric series beyond those after warm-up",
            max(each.series for each in warm) - warm[0].series,
            "most",
            8,
        ),
        Check("leaked file descriptors", leaked, "most", 0),
        Check("requests", tally.asked, "least", arena.times),
    )
    done = f"{CLIENTS} clients: good, bad and cancelled requests, failures of the model"
    return Found("soak", done, arena.times, "seconds", tally.lost + miscounted, checks)
