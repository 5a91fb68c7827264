"""The engines as an API process sees them, over their lives."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace

import pytest

from server.errors import EngineLost, Overloaded
from server.ipc.messages import ModelInfo
from tests.server.engine_client.links import PLAIN, TINY, engine_up, serving, until

ON_GPU = replace(TINY, device="cuda:0")


def test_models_are_those_of_all_engines_that_are_not_given_up() -> None:
    async def main() -> None:
        async with serving(engines=2) as server:
            (engines,) = server.workers
            waiting = asyncio.create_task(engines.wait_ready())
            await server.start(1, models=[TINY])
            await asyncio.wait_for(waiting, 10)
            await server.start(0, models=[ON_GPU])
            engines.engine_ended(0)
            assert engines.models["tiny"].device == "cuda:0,cpu"
            engines.engine_given_up(0)
            assert not engines.given_up
            engines.engine_given_up(1)
            assert engines.given_up
            assert engines.models["tiny"].device == "cpu"
            assert server.reports == [["cpu", "cuda:0,cpu", "cpu"]]

    asyncio.run(main())


def test_a_restarted_engine_takes_jobs_again() -> None:
    async def main() -> None:
        async with serving() as server:
            (engines,) = server.workers
            (router,) = server.routers
            (end,) = await server.start()
            end.close()
            await until(lambda: not engines.ready)
            assert list(engines.models) == ["tiny"]
            engines.engine_ended(0)
            (end,) = await server.start(seconds=0.5)
            with router.lease() as lease:
                running = lease.submit("tiny", PLAIN, 3)
                await end.receive(1)
                end.answer(end.jobs)
                await running
            work = router.estimate_work("tiny", PLAIN, None)
            assert router.seconds_to_complete(work) == pytest.approx(0.5)

    asyncio.run(main())


def test_an_engine_gets_no_job_before_the_process_is_prepared() -> None:
    async def main() -> None:
        async with serving() as server:
            (engines,) = server.workers
            prepared = asyncio.Event()
            seen: list[str] = []

            async def prepare(models: Iterable[ModelInfo]) -> None:
                seen.extend(model.name for model in models)
                await prepared.wait()

            engines.before_jobs = prepare
            starting = asyncio.create_task(server.start())
            await until(lambda: bool(seen))
            assert not engines.ready
            with pytest.raises(Overloaded, match="not loaded"):
                server.routers[0].check_ready()
            prepared.set()
            await starting
            assert engines.ready
            assert seen == ["tiny"]

    asyncio.run(main())


def test_an_engine_that_ends_before_the_process_is_prepared_is_not_used() -> None:
    async def main() -> None:
        async with serving() as server:
            (engines,) = server.workers

            async def end_meanwhile(models: Iterable[ModelInfo]) -> None:
                engines.engine_ended(0)

            engines.before_jobs = end_meanwhile
            (end,) = await server.start()
            assert not engines.ready
            with pytest.raises(AssertionError):
                await end.receive(1)  # it is closed
            engines.before_jobs = None
            await server.start()
            assert engines.ready

    asyncio.run(main())


def test_no_slot_stays_taken_if_the_end_of_an_engine_is_known_before_its_start() -> None:
    async def main() -> None:
        async with serving() as server:
            (engines,) = server.workers
            engines.engine_ended(0)
            (end,) = await server.start()
            with server.routers[0].lease() as lease:
                running = lease.submit("tiny", PLAIN, 3)
                await end.receive(1)
            end.close()
            with pytest.raises(EngineLost):
                await running
            assert engines.slots.used == 1
            await server.start()
            assert (engines.slots.used, engines.ready) == (0, True)

    asyncio.run(main())


def test_a_process_that_cannot_be_prepared_keeps_no_channel() -> None:
    async def main() -> None:
        async with serving() as server:
            (engines,) = server.workers

            async def fail(models: Iterable[ModelInfo]) -> None:
                raise OSError

            engines.before_jobs = fail
            connection, end = server.channel()
            with pytest.raises(OSError):
                await engines.engine_up(engine_up(), connection)
            assert not engines.ready
            with pytest.raises(AssertionError):
                await end.receive(1)  # it is closed

    asyncio.run(main())


def test_a_lost_engine_takes_the_jobs_of_each_process_along() -> None:
    """The channel of one process is lost; the other process loses nothing."""

    async def main() -> None:
        async with serving(workers=2) as server:
            ends = await server.start()
            running = []
            for router in server.routers:
                with router.lease() as lease:
                    running.append(lease.submit("tiny", PLAIN, 3))
                    await asyncio.sleep(0)
            for end in ends:
                await end.receive(1)
            assert [worker.queued for worker in server.workers] == [2, 2]
            ends[0].close()
            with pytest.raises(EngineLost):
                await running[0]
            assert [worker.ready for worker in server.workers] == [False, True]
            assert [worker.queued for worker in server.workers] == [1, 1]
            ends[1].answer(ends[1].jobs)
            await running[1]
            assert [worker.slots.used for worker in server.workers] == [1, 0]
            server.workers[0].engine_ended(0)

    asyncio.run(main())
