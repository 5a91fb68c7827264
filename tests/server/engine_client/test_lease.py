"""One request's hold on a slot."""

import asyncio
from typing import Any

import numpy as np
import pytest

from server.errors import EngineLost
from tests.server.engine_client.links import PLAIN, SIZE, EngineEnd, Server, serving, until
from tome_core.schedule import Schedule


@pytest.mark.parametrize(("dtype", "normalised"), [(np.uint8, False), (np.float32, True)])
def test_an_image_is_written_to_its_slot_and_submitted_with_its_type(
    dtype: Any, normalised: bool
) -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            with server.routers[0].lease() as lease:
                lease.write(np.full(SIZE, 7, dtype))
                assert not lease.submitted
                running = lease.submit("tiny", [Schedule.constant(4)], 3, 12.5, request_id="a1")
                await end.receive(1)
                assert lease.submitted
                (job,) = end.jobs
                assert (server.slots.view(job.slot, SIZE, dtype) == 7).all()
                assert (job.model, job.choices) == ("tiny", (Schedule.constant(4),))
                assert (job.top_k, job.deadline, job.output_kind) == (3, 12.5, "classes")
                assert (job.normalised, job.request_id) == (normalised, "a1")
                end.answer([job])
                assert (await running).outcome.id == job.id

    asyncio.run(main())


def test_a_request_that_is_cancelled_cancels_its_job() -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()

            async def request() -> None:
                with server.routers[0].lease() as lease:
                    await lease.submit("tiny", PLAIN, 3)

            asking = asyncio.create_task(request())
            await end.receive(1)
            asking.cancel()
            await end.receive(2)
            assert end.cancelled == [end.jobs[0].id]
            assert server.workers[0].slots.used == 1
            end.answer(end.jobs)
            await until(lambda: server.workers[0].slots.used == 0)

    asyncio.run(main())


async def run_in_kept_slot(server: Server, end: EngineEnd, windows: int, *, answered: int) -> None:
    """Take a slot, and run in it ``windows`` times; the last waits longer than the request."""
    with server.routers[0].lease() as lease:
        for window in range(windows):
            lease.write(np.full(SIZE, window, np.uint8))
            running = lease.submit("tiny", PLAIN, 3, keep_slot=True)
            await end.receive(len(end.messages) + 1)
            assert not lease.submitted
            job = end.jobs[-1]
            assert (server.slots.view(job.slot, SIZE, np.uint8) == window).all()
            assert server.workers[0].queued == 1
            if window < answered:
                end.answer([job])
                await running
                assert server.workers[0].queued == 0
        running.cancel()


def test_a_slot_that_is_kept_is_free_when_its_lease_ends() -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            await run_in_kept_slot(server, end, windows=3, answered=3)
            assert len({job.slot for job in end.jobs}) == 1
            assert server.workers[0].slots.used == 0

    asyncio.run(main())


def test_a_slot_that_is_kept_is_not_free_before_the_engine_has_answered() -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            await run_in_kept_slot(server, end, windows=2, answered=1)
            assert (server.workers[0].slots.used, server.workers[0].queued) == (1, 1)
            end.answer([end.jobs[-1]])
            await until(lambda: server.workers[0].slots.used == 0)

    asyncio.run(main())


def test_a_slot_that_is_kept_is_not_free_before_a_lost_engine_has_ended() -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            (worker,) = server.workers
            with server.routers[0].lease() as lease:
                running = lease.submit("tiny", PLAIN, 3, keep_slot=True)
                await end.receive(1)
                end.close()
                with pytest.raises(EngineLost):
                    await running
            assert (worker.slots.used, worker.queued) == (1, 0)
            worker.engine_ended(0)
            assert worker.slots.used == 0

    asyncio.run(main())


async def run_twice(server: Server, end: EngineEnd) -> asyncio.Future[Any]:
    """Run an image in a slot that is kept, and again without keeping it; not answered again."""
    with server.routers[0].lease() as lease:
        lease.write(np.full(SIZE, 7, np.uint8))
        first = lease.submit("tiny", PLAIN, 3, keep_slot=True)
        await end.receive(1)
        end.answer(end.jobs)
        await first
        second = lease.submit("tiny", PLAIN, 3, is_second=True)
        await end.receive(2)
    first_job, second_job = end.jobs
    assert first_job.slot == second_job.slot
    assert second_job.is_second
    assert (server.slots.view(second_job.slot, SIZE, np.uint8) == 7).all()
    assert server.workers[0].slots.used == 1
    return second


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_the_answer_of_a_second_pass_frees_the_slot(is_cancelled: bool) -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            second = await run_twice(server, end)
            if is_cancelled:
                second.cancel()
                await end.receive(3)
                assert server.workers[0].slots.used == 1
            end.answer([end.jobs[-1]])
            await until(lambda: server.workers[0].slots.used == 0)

    asyncio.run(main())


def test_an_engine_that_is_lost_in_a_second_pass_keeps_the_slot_until_it_has_ended() -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            (worker,) = server.workers
            second = await run_twice(server, end)
            end.close()
            with pytest.raises(EngineLost):
                await second
            assert (worker.slots.used, worker.queued) == (1, 0)
            worker.engine_ended(0)
            assert worker.slots.used == 0

    asyncio.run(main())


def test_a_slot_that_is_released_is_free_at_once() -> None:
    async def main() -> None:
        async with serving() as server:
            (end,) = await server.start()
            slots = server.workers[0].slots
            with server.routers[0].lease() as lease:
                running = lease.submit("tiny", PLAIN, 3, keep_slot=True)
                await end.receive(1)
                end.answer(end.jobs)
                await running
                assert slots.used == 1
                lease.release()
                assert slots.used == 0
                with server.routers[0].lease():
                    lease.release()  # not once more: another request has it now
                    assert slots.used == 1

    asyncio.run(main())
