"""Generations of engines in one API process: each request keeps its own to its end."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from server.engine_client.engines import Engines
from server.errors import Overloaded
from server.ipc.control import EngineUp, Serving
from server.ipc.shared_memory import SlotRegions
from tests.server.engine_client.links import (
    PLAIN,
    SIZE,
    SLOT_BYTES,
    TINY,
    EngineEnd,
    Server,
    cost_model,
    serving,
    until,
)

# The engine of the first generation has row 0, that of the second row 1.
SECOND = 1


async def start_second(server: Server, engines: Engines, offset: int = 0) -> EngineEnd:
    """Let the API process know of an engine of the second generation, whose slots are larger."""
    connection, end = server.channel()
    models = (replace(TINY, name="other"), TINY)
    costs = {model.name: cost_model(0.01) for model in models}
    up = EngineUp(SECOND, 2, models, 2 * SLOT_BYTES, costs, generation=7, slot_offset=offset)
    await engines.engine_up(up, connection)
    return end


def test_requests_keep_their_generation() -> None:
    async def main() -> None:
        async with serving() as server:
            (engines,) = server.workers
            (router,) = server.routers
            released: list[int] = []
            engines.on_released = released.append
            (first,) = await server.start()
            regions = SlotRegions(server.memory, len(server.slots.array))
            regions.fit(SLOT_BYTES)
            region = regions.fit(2 * SLOT_BYTES)
            assert region.offset > 0
            early = router.estimate_work("tiny", PLAIN, None)
            with router.lease(early) as lease:
                second = await start_second(server, engines, region.offset)
                assert list(engines.models) == ["tiny"]
                engines.serve(Serving(7, (SECOND,), {"best": "tiny"}))
                assert [(name, model.generation) for name, model in engines.models.items()] == [
                    ("other", 7),
                    ("tiny", 7),
                ]
                assert engines.models["tiny"].aliases == ("best",)
                late = router.estimate_work("other", PLAIN, None)
                assert (early.generation, late.generation) == (0, 7)
                lease.write(np.full(SIZE, 1, np.uint8))
                old = lease.submit("tiny", PLAIN, 1)
                with router.lease(late) as other:
                    other.write(np.full(SIZE, 2, np.uint8))
                    new = other.submit("other", PLAIN, 1)
                await first.receive(1)
                await second.receive(1)
                assert server.slots.view(first.jobs[0].slot, SIZE, np.uint8).min() == 1
                assert released == []
                first.answer(first.jobs)
                second.answer(second.jobs)
                await asyncio.gather(old, new)
            assert released == [0]
            lost: list[int] = []
            engines.on_lost = lost.append
            first.close()
            await until(lambda: 0 not in engines.links)
            engines.engine_ended(0)
            assert lost == []  # it was to end
            with pytest.raises(KeyError):
                engines.generation(0)

    asyncio.run(main())


def test_a_generation_that_never_serves_leaves_nothing() -> None:
    async def main() -> None:
        async with serving() as server:
            (engines,) = server.workers
            await server.start()
            await start_second(server, engines)
            engines.engine_ended(SECOND)
            engines.engine_given_up(SECOND)
            assert list(engines.models) == ["tiny"]
            assert engines.ready
            assert not engines.given_up
            with pytest.raises(KeyError):
                engines.generation(7)

    asyncio.run(main())


def test_a_generation_without_an_engine_takes_no_request() -> None:
    async def main() -> None:
        async with serving() as server:
            (engines,) = server.workers
            (router,) = server.routers
            await server.start()
            work = router.estimate_work("tiny", PLAIN, None)
            with router.lease(work):  # holds the generation
                await start_second(server, engines)
                engines.serve(Serving(7, (SECOND,)))
                engines.engine_ended(0)
                with pytest.raises(Overloaded), router.lease(work):
                    pass

    asyncio.run(main())
