"""An API process runs out of memory under load: its own requests alone suffer, and in the end it
serves again or is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
from pathlib import Path

import numpy as np

from tests.chaos.api_loss import CLIENTS, REPLACED_SECONDS, lose_over_and_over
from tests.chaos.harness import Arena, until
from tests.chaos.located_crowd import LocatedCrowd
from tests.chaos.oracle import Case, png
from tests.chaos.results import Check, Found
from tests.server.conftest import RunningServer

# Their bodies and pixels are larger than what a process has free of its memory.
LARGE_SIDE = 1200
LARGE_SHARE = 0.1
ASKED_WITHOUT_MEMORY = 20 * CLIENTS


async def run(arena: Arena) -> Found:
    """Take the memory of an API process as often as wanted."""
    large = large_pictures(arena)

    def draw(random: random.Random) -> Case:
        few = random.random() < LARGE_SHARE
        return random.choice(large) if few else arena.oracle.draw(random)

    losses = await lose_over_and_over(arena, take_memory, draw)
    crowd = losses.crowd
    elsewhere = sum(count for pid, count in crowd.failed_at.items() if pid not in losses.lost)
    suffered = sum((crowd.failed_at + crowd.lost_at).values())
    blamed = sum(count for status, count in crowd.tally.unexpected.items() if status < 500)
    ignored = ("unexpected statuses", "unanswered requests of one lost process")
    checks = (
        *(check for check in losses.checks() if check.what not in ignored),
        Check("failed requests of other processes", elsewhere, "most", 0),
        Check("statuses that blame the request", blamed, "most", 0),
        Check("failed or unanswered requests of those", suffered, "least", 1),
        Check("restarts beyond one each", losses.restarts - arena.times, "most", 0),
    )
    done = f"an API process gets no more memory, under load of {CLIENTS} clients"
    return Found("api-memory", done, arena.times, "times", losses.requests_lost + elsewhere, checks)


def large_pictures(arena: Arena) -> list[Case]:
    """Good requests that take much memory."""
    pixels = np.random.default_rng(0).integers(0, 200, (LARGE_SIDE, LARGE_SIDE, 3), np.uint8)
    return [
        arena.oracle.case(png(np.roll(pixels, shift, axis=0)), r, embed=False)
        for shift in (0, 500)
        for r in ("0", "4")
    ]


async def take_memory(
    server: RunningServer,
    crowd: LocatedCrowd,
    pid: int,
    load: asyncio.Task[None],
) -> None:
    """Refuse every new mapping to a process while clients ask on; give it back if it still runs."""
    reached = crowd.tally.asked + ASKED_WITHOUT_MEMORY
    mapped = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (mapped, hard))
    await until(
        lambda: crowd.tally.asked > reached or pid not in server.api_processes(),
        REPLACED_SECONDS,
        load,
    )
    with contextlib.suppress(ProcessLookupError):  # it has ended
        resource.prlimit(pid, resource.RLIMIT_AS, (hard, hard))
