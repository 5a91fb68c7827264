"""One request's hold on a slot, without an engine."""

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from server.engine_client.routing import Lease
from server.errors import EngineLost
from server.ipc.messages import Job
from server.ipc.shared_memory import Slots, create_memory
from tome_core.schedule import Schedule

SHAPE = (3, 4, 4)


@pytest.fixture
def slots() -> Iterator[Slots]:
    memory = create_memory()
    yield Slots(memory, count=2, slot_bytes=4 * 3 * 4 * 4, create=True)
    os.close(memory)


@pytest.mark.parametrize(("dtype", "normalised"), [(np.uint8, False), (np.float32, True)])
def test_an_image_is_written_to_its_slot_and_submitted_with_its_type(
    slots: Slots, dtype: Any, normalised: bool
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
    assert (slots.view(1, SHAPE, dtype) == 7).all()
    (job,) = submitted
    assert (job.slot, job.model, job.choices) == (1, "tiny", (Schedule.constant(4),))
    assert (job.top_k, job.deadline, job.output_kind) == (3, 12.5, "classes")
    assert (job.normalised, job.request_id) == (normalised, "a1")


def test_a_slot_stays_with_its_request_if_no_engine_is_ready(slots: Slots) -> None:
    def submit(job: Job) -> asyncio.Future[Any]:
        raise EngineLost("no engine")

    lease = Lease(slots, 0, submit)
    with pytest.raises(EngineLost):
        asyncio.run(lease.run("tiny", [Schedule.constant(4)], 3))
    assert not lease.submitted
