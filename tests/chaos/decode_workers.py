"""Decode workers that are lost while they decode: each costs its own upload and no other."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.harness import Arena, Crowd, scrape, settle, until
from tests.chaos.media_load import CLIENTS, missing_slots
from tests.chaos.results import Check, Found
from tests.chaos.videos import mix_of
from tests.server.conftest import RunningServer

# A worker that is stopped is lost after this time.
DECODE_SECONDS = 1.0
LOST = {signal.SIGKILL: 400, signal.SIGSTOP: 413}


async def kill(arena: Arena) -> Found:
    """``kill -9`` of a decode worker."""
    return await lose_workers(arena, "decode-kill", signal.SIGKILL)


async def stop(arena: Arena) -> Found:
    """``kill -STOP`` of a decode worker: a decoder that hangs."""
    return await lose_workers(
        arena, "decode-hang", signal.SIGSTOP, media_decode_timeout=DECODE_SECONDS
    )


async def lose_workers(arena: Arena, name: str, number: signal.Signals, **settings: Any) -> Found:
    """Send ``number`` to a decode worker as often as wanted, under load.

    The sound or the video that it decodes may fail, and no other request.
    """
    mix = mix_of(arena)
    status = LOST[number]
    with mix.server(arena, **settings) as server:
        before = await scrape(server.port)
        crowd = Crowd(server.port, mix.draw_good, allowed={status})
        await lose_over_and_over(arena, server, crowd, number)
        after = await settle(server.port)
        missing = await missing_slots(arena, server)
    tally = crowd.tally
    checks = (
        *tally.checks(),
        Check("failed requests for each lost worker", tally.of(status) / arena.times, "most", 1),
        Check("leaked slots", missing, "most", 0),
    )
    done = f"`kill -{number.name[3:]}` of a decode worker under load of images, sounds and videos"
    lost = tally.lost + tally.miscounted(before, after)
    return Found(name, done, arena.times, "times", lost, checks)


async def lose_over_and_over(
    arena: Arena, server: RunningServer, crowd: Crowd, number: signal.Signals
) -> None:
    """Send ``number`` to a worker each time when as many as at the start take tasks."""
    going = True
    workers = len(server.decode_workers())
    load = asyncio.create_task(crowd.run(CLIENTS, lambda: going))
    for _ in range(arena.times):
        await until(answered(crowd, CLIENTS), load=load)
        chosen = crowd.random.choice(server.decode_workers())
        os.kill(chosen, number)

        def is_replaced(chosen: int = chosen) -> bool:
            now = server.decode_workers()
            return chosen not in now and len(now) == workers and all(map(is_confined, now))

        await until(is_replaced, load=load)
        arena.progress(1)
    going = False
    await load


def is_confined(worker: int) -> bool:
    """Whether a worker has a filter of system calls: all but the end of its start is over."""
    try:
        return "\nSeccomp:\t2\n" in Path(f"/proc/{worker}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def answered(crowd: Crowd, more: int) -> Callable[[], bool]:
    """Whether ``more`` requests than now are answered."""
    reached = crowd.tally.asked + more
    return lambda: crowd.tally.asked >= reached
