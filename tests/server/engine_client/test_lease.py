"""One request's hold on a slot, without an engine."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from server.engine_client.routing import Lease
from server.engine_client.slots import SlotAllocator
from server.errors import EngineLost
from server.ipc.messages import Job
from tome_core.schedule import Schedule

SHAPE = (3, 4, 4)


@pytest.fixture
def slots() -> Iterator[SlotAllocator]:
    allocator = SlotAllocator(2)
    allocator.map(slot_bytes=4 * 3 * 4 * 4)
    yield allocator
    os.close(allocator.descriptor)


@pytest.mark.parametrize(("dtype", "normalised"), [(np.uint8, False), (np.float32, True)])
def test_an_image_is_written_to_its_slot_and_submitted_with_its_type(
    slots: SlotAllocator, dtype: Any, normalised: bool
) -> None:
    submitted: list[Job] = []

    async def run() -> None:
        def submit(job: Job) -> asyncio.Future[Any]:
            submitted.append(job)
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            future.set_result(None)
            return future

        lease = Lease(slots, 1, submit)
        lease.write(np.full(SHAPE, 7, dtype))
        assert not lease.submitted
        await lease.run("tiny", [Schedule.constant(4)], 3, 12.5, request_id="a1")
        assert lease.submitted

    asyncio.run(run())
    assert (slots.memory.view(1, SHAPE, dtype) == 7).all()
    (job,) = submitted
    assert (job.slot, job.model, job.choices) == (1, "tiny", (Schedule.constant(4),))
    assert (job.top_k, job.deadline, job.output_kind) == (3, 12.5, "classes")
    assert (job.normalised, job.request_id) == (normalised, "a1")


def test_a_slot_stays_with_its_request_if_no_engine_is_ready(slots: SlotAllocator) -> None:
    def submit(job: Job) -> asyncio.Future[Any]:
        raise EngineLost("no engine")

    lease = Lease(slots, 0, submit)
    with pytest.raises(EngineLost):
        asyncio.run(lease.run("tiny", [Schedule.constant(4)], 3))
    assert not lease.submitted


def run_in_kept_slot(slots: SlotAllocator, *, cancelled: bool) -> None:
    """Take a slot, run in it once, and keep it; the engine answers, unless it is ``cancelled``."""

    async def run() -> None:
        def submit(job: Job) -> asyncio.Future[Any]:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            if not cancelled:
                answer(future, job)
            return future

        def answer(future: asyncio.Future[Any], job: Job) -> None:
            asyncio.get_running_loop().call_soon(slots.release, job.slot)
            asyncio.get_running_loop().call_soon(future.set_result, None)

        lease = Lease(slots, slots.free.pop(), submit)
        running = asyncio.create_task(
            lease.run("tiny", [Schedule.constant(4)], 3, keep_slot=True),
        )
        await asyncio.sleep(0)
        if cancelled:
            running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not lease.submitted

    asyncio.run(run())


def test_a_slot_that_is_kept_is_free_when_its_lease_ends(slots: SlotAllocator) -> None:
    run_in_kept_slot(slots, cancelled=False)
    assert slots.free == [0]
    slots.release(1)
    assert slots.free == [0, 1]


def test_a_slot_that_is_kept_is_not_free_before_the_engine_has_answered(
    slots: SlotAllocator,
) -> None:
    run_in_kept_slot(slots, cancelled=True)
    slots.release(1)  # by the lease
    assert slots.free == [0]
    slots.release(1)  # by the engine
    assert slots.free == [0, 1]
