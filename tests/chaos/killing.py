"""The engine's process is killed or stopped under load, over and over; in the end it cannot come
back.
"""

from __future__ import annotations

import asyncio
import signal

from tests.chaos.harness import (
    Arena,
    Crowd,
    Stopwatch,
    free_slots,
    is_ready,
    scrape,
    settle,
    total,
    until,
    wait_ready,
)
from tests.chaos.idle import idle_connections
from tests.chaos.results import Check, Found
from tests.server.conftest import RunningServer

SLOTS = 48
CLIENTS = 24
# Each new engine starts while the server has more open files than select() takes (1024).
IDLE = 1500
ANSWER_SECONDS = READY_MORE_SECONDS = 5.0


async def kill(arena: Arena) -> Found:
    """``kill -9``, with idle connections beside the load."""
    return await run(arena, "kill", signal.SIGKILL, IDLE)


async def stop(arena: Arena) -> Found:
    """``kill -STOP``."""
    return await run(arena, "stop", signal.SIGSTOP)


async def run(arena: Arena, name: str, number: signal.Signals, idle_count: int = 0) -> Found:
    """Send ``number`` to the engine as often as wanted, each time when it is busy.

    ``idle_count`` connections stay open meanwhile.
    """
    watch = Stopwatch()
    # Of an engine that is killed, the parent hears at once; a busy machine may stop a healthy one.
    heartbeat = 2 if number == signal.SIGSTOP else 8
    with arena.server(queue_limit=SLOTS, max_batch=8, heartbeat_timeout=heartbeat) as server:
        load_seconds = watch.seconds
        before = await scrape(server.port)
        crowd = Crowd(server.port, arena.oracle.draw, allowed={503}, cancels=0.02, pause=0.2)
        async with idle_connections(server.port, idle_count) as idle:
            slowest_start = await kill_over_and_over(arena, server, crowd, number)
        after = await settle(server.port)
        missing = SLOTS - await free_slots(server, SLOTS, arena.oracle.good[-1])
        ended = (await cannot_come_back(arena, server),) if number == signal.SIGKILL else ()
    tally = crowd.tally
    checks = (
        *tally.checks(),
        Check("slowest answer", tally.slowest, "most", ANSWER_SECONDS, "s", timed=True),
        Check(
            "recovery time beyond that of the first start",
            slowest_start - load_seconds,
            "most",
            READY_MORE_SECONDS,
            "s",
            timed=True,
        ),
        Check(
            "missed restarts", arena.times - total(after, "tome_engine_restarts_total"), "most", 0
        ),
        Check("leaked slots", missing, "most", 0),
        Check("lost idle connections", idle.lost, "most", 0),
        *(Check("exit code when restarts fail", code, "least", 1) for code in ended),
    )
    beside = f", beside {idle_count:,} idle connections" if idle_count else ""
    lost = tally.lost + tally.miscounted(before, after)
    return Found(
        name,
        f"`kill -{number.name[3:]}` of the engine under load" + beside,
        arena.times,
        "times",
        lost,
        checks,
    )


async def kill_over_and_over(
    arena: Arena, server: RunningServer, crowd: Crowd, number: signal.Signals
) -> float:
    """Send ``number`` to the engine as often as wanted, under the load of ``crowd``.

    Return the seconds of the slowest new start.
    """
    slowest_start = 0.0
    going = True
    load = asyncio.create_task(crowd.run(CLIENTS, lambda: going))
    for _ in range(arena.times):
        reached = sum(crowd.tally.answered.values()) + 5 * CLIENTS

        def goes_on(reached: int = reached) -> bool:
            return sum(crowd.tally.answered.values()) > reached

        await until(goes_on, load=load)
        (engine,) = server.engines()
        server.signal_engine(number)
        watch = Stopwatch()

        def is_replaced(engine: int = engine) -> bool:
            return server.engines() != [engine]

        await until(is_replaced)
        await wait_ready(server.port)
        slowest_start = max(slowest_start, watch.seconds)
        arena.progress(1)
    going = False
    await load
    return slowest_start


async def cannot_come_back(arena: Arena, server) -> int:
    """The exit code of a server whose engine is killed after its checkpoint has been taken away."""
    checkpoint = arena.oracle.config.parent / "tiny.safetensors"
    hidden = checkpoint.rename(checkpoint.with_suffix(".hidden"))
    try:
        server.signal_engine(signal.SIGKILL)
        await until(lambda: server.process.poll() is not None, 120)
    finally:
        hidden.rename(checkpoint)
    assert not await is_ready(server.port)
    return server.process.wait()
