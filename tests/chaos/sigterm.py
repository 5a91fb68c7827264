"""SIGTERM under load: whatever the server had taken in is answered, and it ends with code 0."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.chaos.harness import Arena, Crowd, Stopwatch, until
from tests.chaos.results import Check, Found

CLIENTS = 24
CLOSED = 499


async def run(arena: Arena) -> Found:
    """As many servers as wanted, each stopped while its clients go on asking."""
    answered = unread = lost = 0
    codes: set[int] = set()
    slowest = 0.0
    for number in range(arena.times):
        log = arena.folder / f"stop-{number}.log"
        crowd, seconds, code = await one_stop(arena, log, number)
        known = statuses(log)
        answered += crowd.tally.of(200)
        # What the server has in its log it had taken in; what it has not, it has never read (RFC
        # 9112, section 9.3.1).
        taken = [each for each in crowd.tally.unanswered if known.get(each, CLOSED) != CLOSED]
        unread += len(crowd.tally.unanswered) - len(taken)
        cut = log.read_text().count("were cut")
        lost += len(taken) + cut + crowd.tally.wrong + sum(crowd.tally.unexpected.values())
        codes.add(code)
        slowest = max(slowest, seconds)
        arena.progress(1)
    checks = (
        Check("non-zero exit codes", len(codes - {0}), "most", 0),
        Check("slowest stop", slowest, "most", 10, "s", timed=True),
        Check("answered requests", answered, "least", arena.times * CLIENTS),
        Check(
            "unread requests on closed connections",
            unread / arena.times,
            "most",
            2,
            "a stop",
        ),
    )
    return Found(
        "sigterm", f"SIGTERM under load of {CLIENTS} clients", arena.times, "stops", lost, checks
    )


async def one_stop(arena: Arena, log: Path, seed: int) -> tuple[Crowd, float, int]:
    """The clients of one server, the seconds that its stop took, and its exit code."""
    with (
        log.open("w") as stderr,
        arena.server(stderr=stderr, log_level="info", max_batch=8, queue_limit=16) as server,
    ):
        crowd = Crowd(server.port, arena.oracle.draw, allowed={503}, seed=seed)
        load = asyncio.create_task(crowd.run(CLIENTS, lambda: server.process.poll() is None))
        await until(lambda: crowd.tally.of(200) > (2 + seed % 5) * CLIENTS)
        watch = Stopwatch()
        server.process.terminate()
        await until(lambda: server.process.poll() is not None)
        seconds = watch.seconds
        await load
        return crowd, seconds, server.process.wait()


def statuses(log: Path) -> dict[str, int]:
    """The status of every request in a server's log, by its id."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return {
        line["request_id"]: line["status"] for line in lines if line.get("message") == "request"
    }
