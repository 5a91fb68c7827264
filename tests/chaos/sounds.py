"""Sounds that a decoder must survive, and decode workers that are lost, among good requests."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.chaos.harness import (
    Arena,
    Crowd,
    countdown,
    files_lost,
    free_slots,
    open_files,
    resident_mib,
    scrape,
    settle,
    until,
)
from tests.chaos.oracle import Case
from tests.chaos.results import Check, Found
from tests.chaos.sound_oracle import MAX_WINDOWS, SoundOracle
from tests.server.conftest import RunningServer

BAD = 1 / 3
SLOTS = 48
CLIENTS = 16
WARM_REQUESTS = 0.2  # the share after which memory is measured
MORE_MIB = 40  # the largest body has 31 MB, which the API process may still hold
WORKER_MIB = 120  # of a worker that has decoded the largest sound
# A worker that is stopped is lost after this time.
DECODE_SECONDS = 1.0
LOST = {signal.SIGKILL: 400, signal.SIGSTOP: 413}


async def hostile(arena: Arena) -> Found:
    """As many requests as wanted; a third of them are sounds that have to be refused."""
    oracle = SoundOracle(arena.oracle, arena.folder)

    def draw(random: random.Random) -> Case:
        if random.random() < BAD:
            return oracle.draw_bad(random)
        return draw_good(arena, oracle, random)

    with sound_server(arena, oracle) as server:
        before = await settle(server.port)
        crowd = Crowd(server.port, draw)
        warm_requests = round(WARM_REQUESTS * arena.times)
        await crowd.run(CLIENTS, countdown(warm_requests), arena.progress)
        files = open_files(server.process.pid)
        memory = memory_of(server)
        await crowd.run(CLIENTS, countdown(arena.times - warm_requests), arena.progress)
        after = await settle(server.port)
        growth = memory_of(server) - memory
        largest_worker = max(resident_mib(worker) for worker in server.decode_workers())
        leaked = await files_lost(server.process.pid, files)
    tally = crowd.tally
    refused = sum(tally.of(status) for status in (400, 413, 415))
    checks = (
        *tally.checks(),
        Check("share of refused sounds", refused / arena.times, "least", BAD - 0.1),
        Check("memory of API process and engine, growth", growth, "most", MORE_MIB, "MiB"),
        Check("memory of a decode worker", largest_worker, "most", WORKER_MIB, "MiB"),
        Check("leaked file descriptors", leaked, "most", 0),
    )
    done = f"{len(oracle.bad)} kinds of bad sounds among good images and sounds"
    lost = tally.lost + tally.miscounted(before, after)
    return Found("sounds", done, arena.times, "requests", lost, checks)


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

    A sound that it decodes may fail, and no other request.
    """
    oracle = SoundOracle(arena.oracle, arena.folder)
    status = LOST[number]

    def draw(random: random.Random) -> Case:
        return draw_good(arena, oracle, random)

    with sound_server(arena, oracle, **settings) as server:
        before = await scrape(server.port)
        crowd = Crowd(server.port, draw, allowed={status})
        await lose_over_and_over(arena, server, crowd, number)
        after = await settle(server.port)
        missing = SLOTS - await free_slots(server.port, SLOTS, arena.oracle.good[-1])
    tally = crowd.tally
    checks = (
        *tally.checks(),
        Check("failed requests for each lost worker", tally.of(status) / arena.times, "most", 1),
        Check("leaked slots", missing, "most", 0),
    )
    done = f"`kill -{number.name[3:]}` of a decode worker under load"
    lost = tally.lost + tally.miscounted(before, after)
    return Found(name, done, arena.times, "times", lost, checks)


async def lose_over_and_over(
    arena: Arena, server: RunningServer, crowd: Crowd, number: signal.Signals
) -> None:
    """Send ``number`` to a worker each time when as many as at the start take sounds."""
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


def draw_good(arena: Arena, oracle: SoundOracle, random: random.Random) -> Case:
    """An image or a sound, as often."""
    if random.random() < 0.5:
        return random.choice(oracle.good)
    return arena.oracle.draw(random)


def sound_server(
    arena: Arena, oracle: SoundOracle, **settings: Any
) -> AbstractContextManager[RunningServer]:
    """A server of both models."""
    return arena.server(
        config=oracle.config,
        queue_limit=SLOTS,
        max_windows=MAX_WINDOWS,
        max_batch=8,
        **settings,
    )


def memory_of(server: RunningServer) -> float:
    """Resident memory of the API process and the engine, in MiB."""
    return resident_mib(server.process.pid, *server.engines())
