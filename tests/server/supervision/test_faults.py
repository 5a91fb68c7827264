"""Faults of real engine processes: they are killed and stopped, and the model fails on request."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest

from server.catalog.entries import ModelSpec
from server.engine_client.link import EngineLink, Result
from server.errors import EngineLost, EngineStartError, Overloaded
from server.ipc.messages import BatchDone
from server.latency.queueing import WorkEstimate
from tests.server.engine import faulty, garbled
from tests.server.supervision.engines import (
    POLICY,
    SIZE,
    GroupRouter,
    classify,
    configuration,
    running,
    shared,
    until,
)
from tome_core.schedule import Schedule

Shared = tuple[asyncio.Runner, GroupRouter, list[str]]
GARBLED = "tests.server.engine.garbled"
SHORT_BATCHES = replace(POLICY, batch_timeout=6.0)


@pytest.fixture(scope="module")
def faulty_engine(tiny_folder: Path) -> Iterator[Shared]:
    """One engine with the model of `faulty`; a job without a deadline is due at once."""
    restarts: list[str] = []
    with shared(
        configuration(tiny_folder, target_seconds=0.001),
        on_restart=restarts.append,
        module="tests.server.engine.faulty",
        policy=SHORT_BATCHES,
    ) as (loop, router):
        yield loop, router, restarts


@pytest.fixture(autouse=True)
def forget_earlier_tests(faulty_engine: Shared) -> None:
    _, _, restarts = faulty_engine
    restarts.clear()


def image(fault: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 200, SIZE, np.uint8)
    pixels[0, 0, 0] = fault
    return pixels


async def ask(router: GroupRouter, faults: list[int]) -> list[Result | BaseException]:
    """Classify one image per fault, all at once."""
    return await asyncio.gather(
        *(classify(router, image(fault), 4) for fault in faults), return_exceptions=True
    )


async def ask_in_one_batch(router: GroupRouter, faults: list[int]) -> list[Result | BaseException]:
    """The same, while the only engine is stopped, so that it finds all jobs in its queue."""
    kill(router, signal.SIGSTOP)
    asking = asyncio.ensure_future(ask(router, faults))
    await until(lambda: router.engines.queued == len(faults))
    kill(router, signal.SIGCONT)
    return await asking


def failures(results: list[Result | BaseException]) -> list[str]:
    return [
        (result.outcome.failure or "") if isinstance(result, Result) else type(result).__name__
        for result in results
    ]


def batches_of(results: list[Result | BaseException]) -> list[BatchDone]:
    """The batch of each job."""
    return [result.batch for result in results if isinstance(result, Result)]


def kill(router: GroupRouter, number: signal.Signals, engine: int = 0) -> None:
    os.kill(router.group.supervisors[engine].process.pid, number)


@pytest.mark.parametrize(
    ("fault", "outcome", "metric"),
    [
        (faulty.ERROR, "failed", "error"),
        (faulty.NAN, "failed", "nan"),
        (faulty.ALONE_TOO_LARGE, "out-of-memory", "out-of-memory"),
    ],
)
def test_a_fault_anywhere_in_a_batch_fails_its_own_image_only(
    faulty_engine: Shared, fault: int, outcome: str, metric: str
) -> None:
    loop, router, _ = faulty_engine
    (expected,) = loop.run(ask(router, [0]))
    batches: list[BatchDone] = []
    for position in range(4):
        faults = [fault if index == position else 0 for index in range(4)]
        results = loop.run(ask_in_one_batch(router, faults))
        assert failures(results) == [outcome if one == fault else "" for one in faults]
        batches += batches_of(results)
        healthy = [scores(result) for one, result in zip(faults, results, strict=True) if one == 0]
        np.testing.assert_allclose(healthy, [scores(expected)] * 3, atol=1e-5)
    assert {one for batch in batches for one in batch.failures} == {metric}
    assert max(batch.images for batch in batches) == 4


def test_a_batch_that_exceeds_the_device_memory_is_run_in_halves(faulty_engine: Shared) -> None:
    loop, router, _ = faulty_engine
    results = loop.run(ask_in_one_batch(router, [faulty.MEMORY, 0, 0, faulty.MEMORY]))
    assert failures(results) == [""] * 4
    (batch, *others) = batches_of(results)
    assert others == [batch] * 3
    assert (batch.images, batch.failures, batch.r0_seconds) == (4, ("out-of-memory",), 0)

    async def restart() -> None:
        """Start a new process, whose batches are not limited by what happened here."""
        lost = router.group.supervisors[0].process
        kill(router, signal.SIGKILL)
        await until(lambda: router.group.supervisors[0].process is not lost)
        await until(lambda: router.ready)

    loop.run(restart())


def test_the_predicted_delay_includes_the_work_that_is_due_earlier(faulty_engine: Shared) -> None:
    loop, router, _ = faulty_engine

    async def main() -> None:
        for _ in range(8):
            await ask(router, [faulty.SLOW])
        now = time.monotonic()
        last, first = (
            router.estimate_work("tiny", [Schedule.constant(4)], now + sign * 60)
            for sign in (1, -1)
        )
        alone = router.seconds_to_complete(last)
        # Nothing is ahead, and there were no slow images during warm-up.
        assert 0 < alone < faulty.SLOW_SECONDS
        kill(router, signal.SIGSTOP)
        asking = asyncio.ensure_future(ask(router, [faulty.SLOW] * 7))
        await until(lambda: router.engines.queued == 7)
        # Two batches are ahead, and the cost model has learnt from slow ones.
        assert router.seconds_to_complete(last) > 2 * faulty.SLOW_SECONDS
        # Such a job would overtake the whole queue.
        assert router.seconds_to_complete(first) == alone
        with router.lease(first):
            assert (
                router.seconds_to_complete(first) > alone
            )  # an image is counted while it is decoded
        assert router.seconds_to_complete(first) == alone
        assert router.retry_after() >= 1
        kill(router, signal.SIGCONT)
        assert failures(await asking) == [""] * 7

    loop.run(main())


def test_a_stopped_process_is_replaced(faulty_engine: Shared) -> None:
    loop, router, restarts = faulty_engine

    async def main() -> None:
        stopped = router.group.supervisors[0].process
        kill(router, signal.SIGSTOP)
        async with asyncio.timeout(2.5 * SHORT_BATCHES.heartbeat_timeout):
            assert failures(await ask(router, [0] * 8)) == ["EngineLost"] * 8
        assert not router.ready
        with pytest.raises(Overloaded) as caught, router.lease():
            pass
        assert caught.value.retry_after
        await until(lambda: router.engines.slots.used == 0)
        assert not stopped.alive  # the slots are free because the process cannot read them any more
        await all_ready_again(router)

    loop.run(main())
    assert restarts == ["0"]


def test_a_killed_process_is_replaced_and_requests_without_a_job_keep_their_slots(
    faulty_engine: Shared,
) -> None:
    loop, router, restarts = faulty_engine

    async def main() -> None:
        with router.lease() as lease:  # of a request whose image is still being decoded
            asking = asyncio.ensure_future(ask(router, [faulty.HANG] + [0] * 6))
            await until(
                lambda: (
                    router.engines.queued == 7
                    and router.group.supervisors[0].process.heartbeat.batch_started > 0
                )
            )
            kill(router, signal.SIGKILL)
            assert failures(await asking) == ["EngineLost"] * 7
            await until(lambda: router.engines.slots.used == 1)
            with pytest.raises(EngineLost):
                await lease.submit("tiny", [Schedule.constant(0)], 1)
        assert router.engines.slots.used == 0
        await all_ready_again(router)

    loop.run(main())
    assert restarts == ["0"]


@pytest.mark.parametrize("fault", list(garbled.ERRORS))
def test_an_engine_that_sends_what_is_no_answer_is_replaced(
    tiny_folder: Path, fault: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with running([configuration(tiny_folder)], module=GARBLED) as router:
            with pytest.raises(EngineLost):
                await classify(router, image(), fault)
            await until(lambda: router.ready)

    asyncio.run(main())
    assert garbled.ERRORS[fault] in caplog.text
    assert "Traceback" not in caplog.text


def test_an_engine_that_sends_no_report_cannot_start(tiny_folder: Path) -> None:
    async def main() -> None:
        config = configuration(tiny_folder, specs=(ModelSpec(name=garbled.EARLY, timm="vit"),))
        policy = replace(POLICY, failed_starts=1)
        with pytest.raises(EngineStartError, match="Stop was received, not Ready"):
            async with running([config], module=GARBLED, policy=policy):
                pass

    asyncio.run(main())


@pytest.mark.parametrize("fault", [faulty.HANG, faulty.STICKY], ids=["hung batch", "lost device"])
def test_a_fault_that_a_retry_cannot_repair_ends_the_process(
    faulty_engine: Shared, fault: int
) -> None:
    loop, router, restarts = faulty_engine

    async def main() -> None:
        assert failures(await ask(router, [fault, 0, 0])) == ["EngineLost"] * 3
        await all_ready_again(router)

    loop.run(main())
    assert restarts == ["0"]


def test_one_of_two_engines_continues_when_the_other_is_lost(tiny_folder: Path) -> None:
    labels = tiny_folder / "labels.txt"
    text = labels.read_text()

    async def main() -> None:
        policy = replace(POLICY, failed_starts=1)
        async with running([configuration(tiny_folder)] * 2, policy=policy) as router:
            assert router.engines.models["tiny"].device == "cpu,cpu"
            divide_evenly(router)
            for engine in (0, 1):
                kill(router, signal.SIGSTOP, engine)
            asking = asyncio.ensure_future(ask(router, [0] * 8))
            await until(lambda: router.engines.queued == 8)
            board = router.engines.board
            assert [len(board.work_of(engine, ["tiny"], inf)) for engine in (0, 1)] == [4, 4]
            kill(router, signal.SIGKILL, 0)
            kill(router, signal.SIGCONT, 1)
            assert sorted(failures(await asking)) == [""] * 4 + ["EngineLost"] * 4
            assert router.ready
            await until(lambda: router.engines.slots.used == 0)
            assert failures(await ask(router, [0] * 8)) == [""] * 8
            await all_ready_again(router)
            labels.write_text("too few\n")  # so that it cannot be started again
            kill(router, signal.SIGKILL, 0)
            await until(lambda: router.engines.models["tiny"].device == "cpu")
            assert router.group.supervisors[0].given_up
            assert (router.ready, router.engines.given_up) == (True, False)
            assert failures(await ask(router, [0] * 8)) == [""] * 8

    try:
        asyncio.run(main())
    finally:
        labels.write_text(text)


def divide_evenly(router: GroupRouter) -> None:
    """Let each image go to the shortest queue: by its cost model an engine may seem far slower."""

    def seconds(work: WorkEstimate, link: EngineLink, images: int = 1) -> float:
        return router.engines.board.submitted_to(link.engine)

    router._completion_seconds = seconds  # type: ignore[method-assign]


def test_an_engine_that_never_gets_ready_is_given_up_after_three_starts(tiny_folder: Path) -> None:
    restarts: list[str] = []

    async def main() -> None:
        with pytest.raises(EngineStartError, match="exit code 7"):
            module = "tests.server.engine.dying"
            async with running(
                [configuration(tiny_folder)], module=module, on_restart=restarts.append
            ):
                pass

    asyncio.run(main())
    assert restarts == ["0", "0"]


async def all_ready_again(router: GroupRouter) -> None:
    """Wait until all engines are ready again, and check that every slot is usable."""
    await until(lambda: router.all_ready)
    assert failures(await ask(router, [0] * 8)) == [""] * 8
    assert router.engines.slots.used == 0


def scores(result: Result | BaseException) -> tuple[float, ...]:
    assert isinstance(result, Result)
    return result.outcome.scores


def test_an_engine_restarts_without_the_accelerations_that_its_device_cannot_run(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The two starts that find this out do not count as failed: a single failed one would be the
    last.
    """
    policy = replace(POLICY, failed_starts=1)

    async def main() -> None:
        async with running(
            [configuration(tiny_folder)], module="tests.server.engine.unsafe", policy=policy
        ) as router:
            assert router.engines.models["tiny"].acceleration == "reference"
            assert failures(await ask(router, [0] * 4)) == [""] * 4

    asyncio.run(main())
    lines = [record.getMessage() for record in caplog.records]
    first, second = [line for line in lines if "restart in" in line]
    assert "CUDA graphs raised" in first
    assert "the optimised network raised" in second
