"""The catalog is reloaded under load: good ones, broken ones, and the same again. Every answer is
that of a model which served while its request was under way.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.client import Reply, ask, encode
from tests.chaos.counters import watch_counters
from tests.chaos.harness import (
    Arena,
    Crowd,
    Stopwatch,
    files_lost,
    free_slots,
    open_files,
    resident_mib,
    scrape,
    settle,
    total,
    until,
)
from tests.chaos.oracle import Case, Oracle
from tests.chaos.results import Check, Found
from tests.server.conftest import RunningServer

CLIENTS = 12
KEY = "of-the-operator"
RELOAD_SECONDS = 120.0
# What the allocators of all processes may keep of what a reload needed for a moment.
MOST_MIB = 48.0
KINDS = ("good", "broken", "good", "same")


class Versions:
    """Two models of one name, and which of them may answer.

    Attributes:
        serving: that which serves.
        possible: what could answer, from the start on; the last entry holds now.
    """

    def __init__(self, *oracles: Oracle) -> None:
        self.cases = [oracle.good for oracle in oracles]
        self.texts = [
            oracle.config.read_text().replace("tiny.safetensors", str(weights(oracle)))
            for oracle in oracles
        ]
        self.serving = 0
        self.possible = [frozenset({0})]

    def draw(self, random: random.Random) -> VersionedCase:
        """A request to either of them, whose right answer is not known yet."""
        number = random.randrange(len(self.cases[0]))
        case = self.cases[0][number]
        return VersionedCase(
            case.path,
            case.body,
            case.allowed,
            versions=self,
            number=number,
            since=len(self.possible) - 1,
        )

    def begin(self) -> str:
        """Let the other one answer as well; return its catalog."""
        self.possible.append(frozenset({0, 1}))
        return self.texts[1 - self.serving]

    def end(self) -> None:
        """Let the other one alone answer: the processes with the one of before have ended."""
        self.serving = 1 - self.serving
        self.possible.append(frozenset({self.serving}))


@dataclass(frozen=True)
class VersionedCase(Case):
    """A request, and all that may answer it."""

    versions: Versions | None = None
    number: int = 0
    since: int = 0

    def is_right(self, reply: Reply) -> bool:
        assert self.versions is not None
        possible = frozenset[int]().union(*self.versions.possible[self.since :])
        return any(
            self.versions.cases[version][self.number].is_right(reply) for version in possible
        )


def weights(oracle: Oracle) -> Path:
    """The weights of a model."""
    return oracle.config.parent / "tiny.safetensors"


def broken(text: str, folder: Path) -> tuple[str, ...]:
    """Catalogs that cannot be served; of the first ones the file alone shows it."""
    garbage = folder / "garbage.safetensors"
    garbage.write_bytes(bytes(range(256)) * 8)
    line = next(line for line in text.splitlines() if line.startswith("checkpoint"))
    return (
        text.replace(line, f'checkpoint = "{garbage}"'),
        text.replace("[[models]]", "[[models"),
        text.replace("embed_dim = 32", "embed_dim = 64"),
        text.replace(line, f'checkpoint = "{folder / "none.safetensors"}"'),
        text + '\n[aliases]\nother = "none"\n',
    )


async def run(arena: Arena) -> Found:
    """Of four reloads two are good, one is broken, and one finds nothing new."""
    other = arena.folder / "other"
    other.mkdir()
    versions = Versions(arena.oracle, Oracle(other, seed=1))
    labels = arena.oracle.config.parent / "labels.txt"
    config = arena.folder / "models.toml"
    config.with_name("labels.txt").write_text(labels.read_text())
    config.write_text(versions.texts[0])
    faults = broken(versions.texts[0], arena.folder)
    wanted = dict.fromkeys(("loaded", "failed", "unchanged"), 0)
    slots = CLIENTS * arena.workers
    slowest = 0.0
    going = True
    with arena.server(config=config, max_batch=8, queue_limit=slots, admin_key=KEY) as server:
        before = await scrape(server.port)
        files = open_files(server)
        crowd = Crowd(server.port, versions.draw)
        async with watch_counters(server.port) as counters:
            load = asyncio.create_task(crowd.run(CLIENTS, lambda: going))
            await goes_on(crowd, load)
            memory = resident_mib(*server.front_end(), *server.engines())
            for number in range(arena.times):
                watch = Stopwatch()
                kind = KINDS[number % len(KINDS)]
                if kind == "good":
                    config.write_text(versions.begin())
                    result = await reload(server, by_signal=number % 8 == 2)
                    await until(lambda: len(server.engines()) == 1, RELOAD_SECONDS, load)
                    versions.end()
                elif kind == "broken":
                    config.write_text(faults[number // len(KINDS) % len(faults)])
                    result = await reload(server)
                else:
                    config.write_text(versions.texts[versions.serving])
                    result = await reload(server)
                slowest = max(slowest, watch.seconds)
                wanted[{"good": "loaded", "broken": "failed", "same": "unchanged"}[kind]] += 1
                assert result is None or result in wanted, result
                await goes_on(crowd, load)
                arena.progress(1)
            going = False
            await load
        after = await settle(server.port)
        grown = resident_mib(*server.front_end(), *server.engines()) - memory
        missing = slots - await free_slots(server, slots, arena.oracle.good[-1])
        lost_files = await files_lost(server, files)
    tally = crowd.tally
    wrong_results = sum(
        abs(count - total(after, "tome_reloads_total", result=result))
        for result, count in wanted.items()
    )
    checks = (
        *tally.checks(),
        Check("reloads with another result", wrong_results, "most", 0),
        Check("leaked slots", missing, "most", 0),
        Check("files left open", lost_files, "most", 0),
        Check("series of /metrics that fell", len(counters.fallen), "most", 0),
        Check("restarts of the engine", total(after, "tome_engine_restarts_total"), "most", 0),
        Check("memory grown", grown, "most", MOST_MIB, "MiB"),
        Check("slowest reload", slowest, "most", RELOAD_SECONDS, "s", timed=True),
    )
    return Found(
        "reload",
        f"reloads under load of {CLIENTS} clients: of 4 two good, one broken, one the same",
        arena.times,
        "times",
        tally.lost + tally.miscounted(before, after),
        checks,
    )


async def goes_on(crowd: Crowd, load: asyncio.Task[None]) -> None:
    """Wait until all clients may have had further answers."""
    reached = crowd.tally.of(200) + 5 * CLIENTS
    await until(lambda: crowd.tally.of(200) > reached, load=load)


async def reload(server: RunningServer, by_signal: bool = False) -> str | None:
    """Reload; return the result that the answer has, None where there is no answer."""
    if not by_signal:
        request = encode("POST", "/admin/reload", authorization=f"Bearer {KEY}")
        async with asyncio.timeout(RELOAD_SECONDS):
            reply = await ask(server.port, request)
        return "failed" if reply.status == 422 else str(json.loads(reply.body)["result"])
    ended = total(await scrape(server.port), "tome_reloads_total")
    server.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(RELOAD_SECONDS):
        while total(await scrape(server.port), "tome_reloads_total") == ended:
            await asyncio.sleep(0.05)
    return None
