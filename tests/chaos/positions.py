"""An image that makes the model fail, in every place of a batch: only it gets no answer."""

from __future__ import annotations

import asyncio
import json
import signal

from tests.chaos.client import Reply, ask
from tests.chaos.harness import Arena, scrape, settle, total
from tests.chaos.oracle import Case, picture
from tests.chaos.results import Check, Found
from tests.server.conftest import RunningServer
from tests.server.engine import faulty

BATCH = 8
POISON = {faulty.ERROR: 500, faulty.NAN: 500, faulty.ALONE_TOO_LARGE: 503}


async def run(arena: Arena) -> Found:
    """All kinds in all places, as many times over as wanted."""
    good = [case for case in arena.oracle.good if case.route == "/classify"]
    wrong = whole = 0
    with arena.server(faulty=True, max_batch=BATCH) as server:
        for number in range(arena.times):
            for fault, status in POISON.items():
                for place in range(BATCH):
                    chosen = [
                        good[(17 * number + 5 * place + other) % len(good)]
                        for other in range(BATCH)
                    ]
                    chosen[place] = Case(
                        "/classify?r=1", picture(place, fault), frozenset({status})
                    )
                    batch = await one_batch(server, chosen)
                    wrong += sum(
                        not right(case, reply) for case, reply in zip(chosen, batch, strict=True)
                    )
                    sizes = [
                        json.loads(reply.body)["batch_size"]
                        for reply in batch
                        if reply.status == 200
                    ]
                    whole += sizes == [BATCH] * (BATCH - 1)
            arena.progress(1)
        failed = total(await settle(server.port), "tome_batch_failures_total")
        after = await scrape(server.port)
    batches = arena.times * len(POISON) * BATCH
    checks = (
        Check("failed batches", failed, "least", batches),
        Check("share of full batches", whole / batches, "least", 0.9),
        Check("restarts", total(after, "tome_engine_restarts_total"), "most", 0),
    )
    return Found(
        "positions",
        "an exception, NaN or out-of-memory at each position of a batch of 8",
        batches,
        "batches",
        wrong,
        checks,
    )


async def one_batch(server: RunningServer, cases: list[Case]) -> list[Reply]:
    """Have ``cases`` run together, in order: they arrive while the engine is stopped, and their
    deadlines sort them.
    """
    server.signal_engine(signal.SIGSTOP)
    paths = [f"{case.path}&deadline_ms={60_000 + 1000 * place}" for place, case in enumerate(cases)]
    replies = [
        asyncio.create_task(ask(server.port, Case(path, case.body, case.allowed).request()))
        for path, case in zip(paths, cases, strict=True)
    ]
    while total(await scrape(server.port), "tome_queue_jobs") < len(cases):
        await asyncio.sleep(0.005)
    server.signal_engine(signal.SIGCONT)
    return list(await asyncio.gather(*replies))


def right(case: Case, reply: Reply) -> bool:
    return reply.status in case.allowed and (reply.status != 200 or case.is_right(reply))
