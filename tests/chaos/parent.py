"""The parent process is killed under load: all processes that it has started end by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from tests.chaos.harness import Arena, Crowd, Stopwatch, until
from tests.chaos.media_load import CLIENTS, Mix
from tests.chaos.results import Check, Found
from tests.chaos.videos import mix_of
from tests.server.conftest import command

MOST_SECONDS = 5.0
WAIT_SECONDS = 30.0


async def run(arena: Arena) -> Found:
    """As many servers as wanted, of images, sounds and videos."""
    mix = mix_of(arena)
    slowest = 0.0
    fewest = 1_000_000
    left = wrong = unexpected = 0
    for _ in range(arena.times):
        crowd, others, seconds, living = await kill_one(arena, mix)
        slowest = max(slowest, seconds)
        fewest = min(fewest, others)
        left += living
        wrong += crowd.tally.wrong
        unexpected += sum(crowd.tally.unexpected.values())
        arena.progress(1)
    checks = (
        Check("wrong answers", wrong, "most", 0),
        Check("unexpected statuses", unexpected, "most", 0),
        Check("processes left", left, "most", 0),
        # API processes with a decode worker each, and the engine.
        Check("processes of a server but the parent", fewest, "least", 2 * arena.workers + 1),
        Check("slowest end of them all", slowest, "most", MOST_SECONDS, "s", timed=True),
    )
    done = f"`kill -KILL` of the parent process under load of {CLIENTS} clients"
    return Found("parent-kill", done, arena.times, "times", wrong, checks)


async def kill_one(arena: Arena, mix: Mix) -> tuple[Crowd, int, float, int]:
    """The clients of one server, the number of its other processes, the seconds in which these
    ended, and how many did not.
    """
    with mix.server(arena) as server:
        crowd = Crowd(server.port, mix.draw_good, allowed={503})
        load = asyncio.create_task(crowd.run(CLIENTS, lambda: server.process.poll() is None))
        await until(lambda: crowd.tally.of(200) > 3 * CLIENTS, load=load)
        others = [*server.api_processes(), *server.engines(), *server.decode_workers()]
        server.process.kill()
        watch = Stopwatch()
        with contextlib.suppress(TimeoutError):
            await until(lambda: not any(map(command, others)), WAIT_SECONDS)
        seconds = watch.seconds
        living = [pid for pid in others if command(pid)]
        for pid in living:
            os.kill(pid, signal.SIGKILL)
        await load
    return crowd, len(others), seconds, len(living)
