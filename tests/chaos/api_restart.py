"""API processes are replaced under load, all one after the other or one alone: whatever one of them
had read is answered.
"""

from __future__ import annotations

import asyncio
import os
import signal

from tests.chaos.api_processes import connect_to_each
from tests.chaos.counters import watch_counters
from tests.chaos.harness import (
    Arena,
    Crowd,
    Stopwatch,
    free_slots,
    scrape,
    settle,
    total,
    until,
)
from tests.chaos.results import Check, Found
from tests.chaos.sigterm import CLOSED, statuses
from tests.server.conftest import RunningServer

CLIENTS = 24
RESTART_SECONDS = 120.0
# Of each process that is replaced.
MOST_SECONDS = 10.0


async def run(arena: Arena) -> Found:
    """SIGUSR1 to the parent and SIGTERM to one API process in turns, as often as wanted."""
    log = arena.folder / "server.log"
    slots = CLIENTS * arena.workers  # so that a process that has all connections refuses none
    replaced = 0
    slowest = 0.0
    going = True
    with (
        log.open("w") as stderr,
        arena.server(stderr=stderr, log_level="info", max_batch=8, queue_limit=slots) as server,
    ):
        before = await scrape(server.port)
        crowd = Crowd(server.port, arena.oracle.draw, allowed={503})
        async with watch_counters(server.port) as counters:
            load = asyncio.create_task(crowd.run(CLIENTS, lambda: going))
            for number in range(arena.times):
                await goes_on(crowd, load)
                watch = Stopwatch()
                count = await replace_some(server, load, whole=number % 2 == 0)
                slowest = max(slowest, watch.seconds / count)
                replaced += count
                arena.progress(1)
            await goes_on(crowd, load)
            going = False
            await load
        after = await settle(server.port)
        missing = slots - await free_slots(server, slots, arena.oracle.good[-1])
    tally = crowd.tally
    known = statuses(log)
    read = [each for each in tally.unanswered if known.get(each, CLOSED) != CLOSED]
    unread = len(tally.unanswered) - len(read)
    restarts = total(after, "tome_api_worker_restarts_total")
    checks = (
        Check("wrong answers", tally.wrong, "most", 0),
        Check("unanswered requests that were read", len(read), "most", 0),
        Check("unexpected statuses", sum(tally.unexpected.values()), "most", 0),
        Check("refused requests", tally.of(503), "most", 0),
        Check("missed restarts", abs(replaced - restarts), "most", 0),
        Check("leaked slots", missing, "most", 0),
        Check("series of /metrics that fell", len(counters.fallen), "most", 0),
        Check("restarts of the engine", total(after, "tome_engine_restarts_total"), "most", 0),
        Check("unread requests", unread / replaced, "most", 2, "for each replaced process"),
        Check("slowest restart", slowest, "most", MOST_SECONDS, "s a process", timed=True),
    )
    cut = log.read_text().count("were cut")
    lost = tally.wrong + len(read) + cut + tally.miscounted(before, after)
    return Found(
        "api-restart",
        f"SIGUSR1 to the parent, SIGTERM to one API process, under load of {CLIENTS} clients",
        arena.times,
        "times",
        lost,
        checks,
    )


async def goes_on(crowd: Crowd, load: asyncio.Task[None]) -> None:
    """Wait until all clients may have had further answers."""
    reached = crowd.tally.of(200) + 5 * CLIENTS
    await until(lambda: crowd.tally.of(200) > reached, load=load)


async def replace_some(server: RunningServer, load: asyncio.Task[None], whole: bool) -> int:
    """Have all API processes replaced, or one of them; return how many, when all serve."""
    before = server.api_processes()
    gone = set(before) if whole else set(before[:1])
    if whole:
        server.process.send_signal(signal.SIGUSR1)
    else:
        os.kill(before[0], signal.SIGTERM)

    def are_replaced() -> bool:
        now = server.api_processes()
        return len(now) == len(before) and not gone & set(now)

    await until(are_replaced, RESTART_SECONDS, load)
    for connection in await connect_to_each(server):
        connection.close()
    return len(gone)
