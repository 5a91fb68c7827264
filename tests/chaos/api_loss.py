"""API processes that are killed or stopped under load: each costs its own requests alone."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from tests.chaos.counters import Counters, watch_counters
from tests.chaos.harness import (
    Arena,
    Series,
    Stopwatch,
    free_slots,
    scrape,
    settle,
    total,
    until,
)
from tests.chaos.located_crowd import LocatedCrowd
from tests.chaos.oracle import Case
from tests.chaos.results import Check, Found
from tests.server.conftest import RunningServer

SLOTS = 48
CLIENTS = 24
# A stopped process is replaced after two and a half times as long.
HEARTBEAT_SECONDS = 2.0
# Of a process that is killed, the parent hears at once; a busy machine may stop a healthy one.
PATIENT_SECONDS = 8.0
REPLACED_SECONDS = 120.0
REPLACED_MORE_SECONDS = 10.0

Draw: TypeAlias = Callable[[random.Random], Case]
# Does to an API process what the scenario is about, and returns when it is over.
Lose: TypeAlias = Callable[[RunningServer, LocatedCrowd, int, asyncio.Task[None]], Awaitable[None]]


@dataclass(frozen=True)
class Losses:
    """What was done to API processes, and what the clients and /metrics said of it.

    Attributes:
        lost: the processes to which it was done, by process ID.
        slowest: seconds until the server was whole again, at most.
        before, after: all series.
        missing: slots that are lost for ever.
    """

    lost: tuple[int, ...]
    slowest: float
    crowd: LocatedCrowd
    counters: Counters
    before: Series
    after: Series
    missing: int

    @property
    def restarts(self) -> float:
        """API processes that were replaced."""
        name = "tome_api_worker_restarts_total"
        return total(self.after, name) - total(self.before, name)

    @property
    def lost_elsewhere(self) -> int:
        """Unanswered requests to processes to which nothing was done."""
        lost_at = self.crowd.lost_at
        return sum(count for pid, count in lost_at.items() if pid not in self.lost)

    @property
    def requests_lost(self) -> int:
        """See `Found`; without the unanswered requests of the processes that were lost."""
        tally = self.crowd.tally
        overcounted = self.crowd.overcounted(self.before, self.after)
        return tally.wrong + self.lost_elsewhere + overcounted

    def checks(self) -> tuple[Check, ...]:
        """The bars, whatever was done."""
        tally = self.crowd.tally
        uncounted = self.crowd.uncounted(self.before, self.after)
        own = max((self.crowd.lost_at[pid] for pid in self.lost), default=0)
        engine_restarts = total(self.after, "tome_engine_restarts_total")
        return (
            Check("wrong answers", tally.wrong, "most", 0),
            Check("unanswered of other processes", self.lost_elsewhere, "most", 0),
            Check("unexpected statuses", sum(tally.unexpected.values()), "most", 0),
            Check("leaked slots", self.missing, "most", 0),
            Check("series of /metrics that fell", len(self.counters.fallen), "most", 0),
            Check("restarts of the engine", engine_restarts, "most", 0),
            Check(
                "unanswered requests of one lost process",
                own,
                "most",
                self.crowd.most_held(CLIENTS),
            ),
            # It is lost between the answer and its count.
            Check("uncounted answers for each lost process", uncounted / len(self.lost), "most", 1),
            Check("scrapes", self.counters.scrapes, "least", len(self.lost)),
        )


async def kill(arena: Arena) -> Found:
    """``kill -9``."""
    return await lose_all(arena, "api-kill", signal.SIGKILL, REPLACED_MORE_SECONDS, PATIENT_SECONDS)


async def stop(arena: Arena) -> Found:
    """``kill -STOP``."""
    seconds = 2.5 * HEARTBEAT_SECONDS + REPLACED_MORE_SECONDS
    return await lose_all(arena, "api-stop", signal.SIGSTOP, seconds, HEARTBEAT_SECONDS)


async def lose_all(
    arena: Arena, name: str, number: signal.Signals, seconds: float, heartbeat: float
) -> Found:
    """Send ``number`` to an API process as often as wanted; ``seconds``: to replace it."""
    lose = partial(send_and_wait, number=number)
    losses = await lose_over_and_over(arena, lose, heartbeat=heartbeat)
    checks = (
        *losses.checks(),
        Check("missed restarts", abs(arena.times - losses.restarts), "most", 0),
        Check("slowest replacement", losses.slowest, "most", seconds, "s", timed=True),
    )
    done = f"`kill -{number.name[3:]}` of an API process under load of {CLIENTS} clients"
    return Found(name, done, arena.times, "times", losses.requests_lost, checks)


async def send_and_wait(
    server: RunningServer,
    crowd: LocatedCrowd,
    pid: int,
    load: asyncio.Task[None],
    number: signal.Signals,
) -> None:
    """Send ``number`` to a process, and wait until another has replaced it."""
    os.kill(pid, number)
    await until(lambda: pid not in server.api_processes(), REPLACED_SECONDS, load)


async def lose_over_and_over(
    arena: Arena, lose: Lose, draw: Draw | None = None, heartbeat: float = HEARTBEAT_SECONDS
) -> Losses:
    """Call ``lose`` as often as wanted, each time with a process that has its share of the load."""
    lost = []
    slowest = 0.0
    going = True
    log = arena.folder / "server.log"
    with (
        log.open("w") as stderr,
        arena.server(
            stderr=stderr, queue_limit=SLOTS, max_batch=8, heartbeat_timeout=heartbeat
        ) as server,
    ):
        crowd = LocatedCrowd(server, arena.workers, draw or arena.oracle.draw, allowed={503})
        before = await scrape(server.port)
        async with watch_counters(server.port) as counters:
            load = asyncio.create_task(crowd.run(CLIENTS, lambda: going))
            await whole_again(crowd, load)
            for _ in range(arena.times):
                pid = crowd.random.choice(server.api_processes())
                lost.append(pid)
                watch = Stopwatch()
                await lose(server, crowd, pid, load)
                await whole_again(crowd, load)
                slowest = max(slowest, watch.seconds)
                arena.progress(1)
            going = False
            await load
        after = await settle(server.port)
        missing = SLOTS - await free_slots(server, SLOTS, arena.oracle.good[-1])
    return Losses(tuple(lost), slowest, crowd, counters, before, after, missing)


async def whole_again(crowd: LocatedCrowd, load: asyncio.Task[None]) -> None:
    """Wait until every process has its share of the connections, and clients further answers."""
    reached = sum(crowd.tally.answered.values()) + 5 * CLIENTS
    await until(
        lambda: sum(crowd.tally.answered.values()) > reached and crowd.is_balanced(CLIENTS),
        REPLACED_SECONDS,
        load,
    )
