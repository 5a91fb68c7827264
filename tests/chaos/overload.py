"""Ten times more than the server can do, for a minute, with wrk on the same cores.

The model is so large that wrk takes little of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
from dataclasses import dataclass
from pathlib import Path

from benchmarks.checkpoints import write_random_model
from tests.chaos.client import Lost, Reply, ask, encode
from tests.chaos.harness import Arena, Series, Stopwatch, resident_mib, scrape, settle, total
from tests.chaos.results import Check, Found
from tests.server.conftest import RunningServer, run_server
from tome_core.backends.cpu import kernels
from tome_load.pictures import generate_jpeg

SCRIPT = Path(__file__).with_name("overload.lua")
# Without the kernels a batch of ViT-B takes seconds: too few for the peak run in `PEAK_SECONDS`.
MODEL = "vit_base_patch16_224" if kernels.available() else "vit_tiny_patch16_224"
LEVELS = (0, 8, 16)
SLOTS = 64
BATCH = 16
PEAK_CONNECTIONS = 32
DEADLINE_SECONDS = 5.0
TIMES_PEAK = 10.0
AIM = 10.3
PEAK_SECONDS = 20
PROBES_PER_SECOND = 10
PAUSE_MS = 1000


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw, and what it took itself, as a share of one core."""

    requests: int
    seconds: float
    refused: int
    broken: int
    cpu: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


class Overload:
    """One server, and the loads that are put on it."""

    def __init__(self, server: RunningServer, folder: Path) -> None:
        self.server = server
        self.body = folder / "body.jpg"
        self.content = generate_jpeg()
        self.body.write_bytes(self.content)
        self.unlimited = [f"/classify?r={r}" for r in LEVELS]
        self.paths = [f"{path}&deadline_ms={DEADLINE_SECONDS * 1000:g}" for path in self.unlimited]
        self.random = random.Random(3)
        self.replies: list[Reply] = []
        self.lost = 0

    async def closed_loop(self, seconds: float) -> Load:
        """Load the server as far as it goes: no deadlines, and slots for all."""
        return await self.wrk(PEAK_CONNECTIONS, seconds, 0, self.unlimited)

    async def open_loop(self, connections: int, seconds: float) -> Load:
        """Load the server whatever it answers, with deadlines."""
        return await self.wrk(connections, seconds, PAUSE_MS, self.paths)

    async def wrk(
        self, connections: int, seconds: float, pause_ms: float, paths: list[str]
    ) -> Load:
        environment = os.environ | {
            "WRK_BODY": str(self.body),
            "WRK_PATHS": " ".join(paths),
            "WRK_DELAY": f"{pause_ms:g}",
        }
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds:g}s",
            "--timeout",
            "30s",
            "-s",
            str(SCRIPT),
        ]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = await asyncio.create_subprocess_exec(
            *command, self.server.url, env=environment, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(next(line for line in printed.splitlines() if line.startswith(b"{")))
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Load(
            found["requests"],
            found["seconds"],
            found["refused"],
            found["broken"],
            used / found["seconds"],
        )

    async def probe(self) -> None:
        """Ask now and then, each time on a new connection, and note every answer: wrk cannot tell
        them apart.
        """
        request = encode(
            "POST", self.random.choice(self.paths), self.content, content_type="image/jpeg"
        )
        try:
            self.replies.append(await ask(self.server.port, request))
        except (Lost, OSError):
            self.lost += 1

    async def probe_until(self, end: asyncio.Event) -> None:
        """Probes by the clock, whatever becomes of them."""
        async with asyncio.TaskGroup() as group:
            while not end.is_set():
                group.create_task(self.probe())
                await asyncio.sleep(1 / PROBES_PER_SECOND)

    def memory(self) -> float:
        return resident_mib(*self.server.front_end(), *self.server.engines())


async def run(arena: Arena) -> Found:
    """For as many seconds as wanted."""
    config = write_random_model(MODEL, arena.folder)
    with run_server(
        config=config,
        queue_limit=SLOTS,
        max_batch=BATCH,
        levels=",".join(map(str, LEVELS)),
        log_level="error",
        api_workers=arena.workers,
    ) as server:
        overload = Overload(server, arena.folder)
        await overload.closed_loop(5)  # not counted
        # The images whose clients have gone hold their slots until then.
        start = await settle(server.port)
        peak = await overload.closed_loop(min(PEAK_SECONDS, arena.times))
        peak_rate = images(start, await settle(server.port)) / peak.seconds
        connections = SLOTS + round(AIM * peak_rate * PAUSE_MS / 1000)
        # What many connections take themselves is no growth, so they are all there once before.
        await overload.open_loop(connections, 5)
        before = await settle(server.port)
        memory = overload.memory()
        most = memory
        ended = asyncio.Event()
        watch = Stopwatch()
        probing = asyncio.create_task(overload.probe_until(ended))
        load = asyncio.create_task(overload.open_loop(connections, arena.times))
        done = 0
        while not load.done():
            await asyncio.sleep(1)
            most = max(most, overload.memory())
            arena.progress(min(1, arena.times - done))
            done = min(done + 1, arena.times)
        during = await scrape(server.port)
        seconds = watch.seconds
        ended.set()
        await probing
        await settle(server.port)
    return judge(
        overload, load.result(), peak_rate, images(before, during) / seconds, most - memory
    )


def images(before: Series, after: Series) -> float:
    """How many were answered in between."""
    return total(after, "tome_images_total") - total(before, "tome_images_total")


def judge(overload: Overload, load: Load, peak: float, goodput: float, grown: float) -> Found:
    """The bars."""
    refusals = sorted(reply.seconds for reply in overload.replies if reply.status == 503)
    good = [reply.seconds for reply in overload.replies if reply.status == 200]
    statuses = {reply.status for reply in overload.replies}
    offered = load.per_second + PROBES_PER_SECOND
    checks = (
        Check("offered load as a multiple of the peak", offered / peak, "least", TIMES_PEAK),
        Check("peak", peak, "least", 1, "images/s"),
        Check("goodput as a share of the peak", goodput / peak, "least", 0.9),
        Check(
            "p99 latency of refusals",
            1000 * refusals[int(0.99 * len(refusals))] if refusals else 1e9,
            "most",
            100,
            "ms",
        ),
        Check(
            "slowest accepted request beyond its deadline",
            max(good, default=0) - DEADLINE_SECONDS,
            "most",
            0.25,
            "s",
        ),
        Check("statuses other than 200, 503, 504", len(statuses - {200, 503, 504}), "most", 0),
        Check("memory growth", grown, "most", 20, "MiB"),
        Check("load generator's share of a core", 100 * load.cpu, "most", 5, "%"),
    )
    done = (
        f"{TIMES_PEAK:g} times the peak rate, {MODEL}, r = 0, 8 and 16 mixed, deadlines of"
        f" {DEADLINE_SECONDS:g} s"
    )
    return Found(
        "overload", done, round(load.seconds), "seconds", overload.lost + load.broken, checks
    )
