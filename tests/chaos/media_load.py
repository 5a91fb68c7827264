"""Servers of several modalities under load: good media, and those that a decoder must survive."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.deck import Deck
from tests.chaos.harness import (
    Arena,
    Crowd,
    countdown,
    files_lost,
    free_slots,
    open_files,
    resident_mib,
    settle,
    total,
)
from tests.chaos.oracle import Case
from tests.chaos.results import Check, Found
from tests.chaos.worker_peaks import watch_workers
from tests.server.conftest import RunningServer

CLIENTS = 16
MOST_WINDOWS = 4  # of a request; those of one that has more would take the slots of others
SLOTS = CLIENTS * MOST_WINDOWS
BAD = 1 / 3
WARM_REQUESTS = 0.2  # the share after which memory is measured
# None of them takes a second. On a busy machine, the default might refuse what is right.
DECODE_SECONDS = 60
MORE_MIB = 40  # the largest body has 31 MB, which an API process may still hold


@dataclass(frozen=True)
class Mix:
    """Requests to models of several modalities.

    Attributes:
        config: of the models.
        good, bad: those of one modality in each deck.
        settings: of the server, that the answers depend on.
    """

    config: Path
    good: tuple[Deck, ...]
    bad: tuple[Deck, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> int:
        """How many different requests are bad."""
        return sum(map(len, self.bad))

    def draw_good(self, random: random.Random) -> Case:
        """A request of any modality, each as often."""
        return random.choice(self.good).draw(random)

    def draw(self, random: random.Random) -> Case:
        """A good request, or one that has to be refused."""
        decks = self.bad if random.random() < BAD else self.good
        return random.choice(decks).draw(random)

    def server(self, arena: Arena, **settings: Any) -> AbstractContextManager[RunningServer]:
        """A server of all models, in which no good request is refused for want of slots."""
        return arena.server(
            config=self.config, queue_limit=SLOTS, max_batch=8, **(self.settings | settings)
        )


async def survive(arena: Arena, name: str, done: str, mix: Mix, worker_mib: int) -> Found:
    """As many requests as wanted, of which a third has to be refused.

    Args:
        done: see `Found`.
        worker_mib: most resident memory of a decode worker.
    """
    with mix.server(arena, media_decode_timeout=DECODE_SECONDS) as server:
        async with watch_workers(server) as peaks:
            before = await settle(server.port)
            crowd = Crowd(server.port, mix.draw)
            warm_requests = round(WARM_REQUESTS * arena.times)
            await crowd.run(CLIENTS, countdown(warm_requests), arena.progress)
            files = open_files(server)
            memory = memory_of(server)
            await crowd.run(CLIENTS, countdown(arena.times - warm_requests), arena.progress)
            after = await settle(server.port)
            growth = memory_of(server) - memory
        missing = await missing_slots(arena, server)
        leaked = await files_lost(server, files)
    tally = crowd.tally
    workers = total(after, "tome_decode_workers_lost_total")
    refused = sum(tally.of(status) for status in (400, 404, 413, 415, 422))
    checks = (
        *tally.checks(),
        Check("leaked slots", missing, "most", 0),
        Check("leaked file descriptors", leaked, "most", 0),
        Check("lost decode workers", workers, "most", 0),
        Check("share of refused requests", refused / arena.times, "least", BAD - 0.1),
        Check(
            "memory of API processes and engine, growth",
            growth,
            "most",
            MORE_MIB * arena.workers,
            "MiB",
        ),
        Check("memory of a decode worker", peaks.resident_mib, "most", worker_mib, "MiB"),
        Check("address space of a decode worker", peaks.mapped_mb, "most", peaks.limit_mb, "MB"),
    )
    lost = tally.lost + tally.miscounted(before, after)
    return Found(name, done, arena.times, "requests", lost, checks)


async def missing_slots(arena: Arena, server: RunningServer) -> int:
    """How many slots are lost for ever, once no request is under way."""
    return SLOTS - await free_slots(server, SLOTS, arena.oracle.good[-1])


def memory_of(server: RunningServer) -> float:
    """Resident memory of the parent, the API processes and the engine, in MiB."""
    return resident_mib(*server.front_end(), *server.engines())
