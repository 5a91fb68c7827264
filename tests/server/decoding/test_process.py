"""One worker without a pool."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections.abc import Awaitable, Callable

import pytest

from server.decoding.idle import IdleWorkers
from server.decoding.memory import anonymous_memory, write_sealed
from server.decoding.messages import Done, Refused, Task
from server.decoding.process import DecodeProcess, Loss, TaskNotBegun, WorkerLost
from server.decoding.sandbox import ADDRESS_SPACE_BYTES
from server.media.modality import Modality
from tests.server.decoding.pools import DECODER, LIMITS, PATIENCE, TRANSFORM, running_pool


async def run(process: DecodeProcess, body: bytes, cpu_seconds: float) -> Done | Refused:
    task = Task(process.tasks, TRANSFORM, LIMITS[Modality.AUDIO], cpu_seconds)
    with (
        anonymous_memory("test-body", len(body)) as body_memory,
        anonymous_memory("test-inputs", task.result_bytes) as result_memory,
    ):
        await write_sealed(body_memory, body)
        return await process.run(task, body_memory, result_memory, PATIENCE)


def with_process(use: Callable[[DecodeProcess], Awaitable[None]]) -> None:
    async def main() -> None:
        process = DecodeProcess({Modality.AUDIO: DECODER}, ADDRESS_SPACE_BYTES[Modality.AUDIO])
        try:
            await process.wait_until_ready(PATIENCE)
            await use(process)
        finally:
            await process.close()

    asyncio.run(main())


def test_the_kernel_ends_a_task_that_takes_too_much_cpu_time() -> None:
    async def use(process: DecodeProcess) -> None:
        for _ in range(3):  # the limit is that of each task
            assert isinstance(await run(process, b"1", cpu_seconds=0.5), Done)
        with pytest.raises(WorkerLost) as lost:
            await run(process, b"burn", cpu_seconds=0.5)
        assert lost.value.loss is Loss.CPU

    with_process(use)


def test_a_worker_that_is_gone_gets_no_task() -> None:
    async def use(process: DecodeProcess) -> None:
        process.retire()
        with pytest.raises(TaskNotBegun):
            await run(process, b"1", cpu_seconds=1.0)
        await process.close()
        assert process.loss is None

    with_process(use)


def test_a_message_that_nobody_asked_for_ends_the_worker() -> None:
    async def use(process: DecodeProcess) -> None:
        assert isinstance(await run(process, b"later", cpu_seconds=5.0), Done)
        await asyncio.wait_for(process.gone.wait(), PATIENCE)
        assert process.loss is Loss.PROTOCOL

    with_process(use)


def test_who_gives_up_passes_the_worker_on() -> None:
    async def use(process: DecodeProcess) -> None:
        idle = IdleWorkers()
        gives_up = asyncio.create_task(idle.take())
        waits = asyncio.create_task(idle.take())
        await asyncio.sleep(0)
        idle.put(process)  # the first has it, and does not run before it is cancelled
        gives_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gives_up
        assert await asyncio.wait_for(waits, PATIENCE) is process

    with_process(use)


def test_a_socket_with_a_large_number_is_no_obstacle() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2_000 if hard == resource.RLIM_INFINITY else min(2_000, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    try:

        async def main() -> None:
            async with running_pool() as pool:
                assert (await pool.decode(b"3", TRANSFORM)).inputs.max() == 3.0

        asyncio.run(main())
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_system_that_permits_less_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """A process with two threads cannot leave its user namespace."""
    caplog.set_level(logging.DEBUG, "tome.decoding")

    async def main() -> None:
        decoders = {Modality.AUDIO: "tests.server.decoding.threaded:decode"}
        async with running_pool(decoders=decoders) as pool:
            assert (await pool.decode(b"3", TRANSFORM)).inputs.max() == 3.0

    asyncio.run(main())
    assert "decode workers run without: namespaces: Invalid argument" in caplog.text
