"""Engines that fail, for real: processes are killed and stopped, and a model fails where an image
tells it to.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.engine_client.health import HealthPolicy
from server.engine_client.pool import EnginePool
from server.engine_client.process import Result
from server.errors import EngineLost, EngineStartError, Overloaded
from server.ipc.messages import BatchDone
from tests.server.engine import faulty
from tests.server.engine_client.pools import (
    PATIENCE,
    SIZE,
    classify,
    configuration,
    running,
    shared,
    until,
)
from tome_core.schedule import Schedule

Shared = tuple[asyncio.Runner, EnginePool, list[BatchDone], list[str]]
PATIENT = HealthPolicy(start=60, silent=8, hung=6.0)


@pytest.fixture(scope="module")
def faulty_engine(tiny_folder: Path) -> Iterator[Shared]:
    """One engine with the model of `faulty`; every job without a deadline is due at once."""
    batches: list[BatchDone] = []
    restarts: list[str] = []
    with shared(
        configuration(tiny_folder, target_seconds=0.001),
        on_batch=batches.append,
        on_restart=restarts.append,
        module="tests.server.engine.faulty",
        patience=PATIENT,
    ) as (loop, pool):
        yield loop, pool, batches, restarts


@pytest.fixture(autouse=True)
def forget(faulty_engine: Shared) -> None:
    for noted in faulty_engine[2:]:
        noted.clear()


def image(fault: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 200, SIZE, np.uint8)
    pixels[0, 0, 0] = fault
    return pixels


async def ask(pool: EnginePool, faults: list[int]) -> list[Result | BaseException]:
    """All at once."""
    return await asyncio.gather(
        *(classify(pool, image(fault), 4) for fault in faults), return_exceptions=True
    )


async def ask_together(pool: EnginePool, faults: list[int]) -> list[Result | BaseException]:
    """The same, and the only engine, which is stopped meanwhile, finds all of them waiting."""
    kill(pool, signal.SIGSTOP)
    asking = asyncio.ensure_future(ask(pool, faults))
    await until(lambda: pool.queued == len(faults))
    kill(pool, signal.SIGCONT)
    return await asking


def failures(results: list[Result | BaseException]) -> list[str]:
    return [
        result.outcome.failure if isinstance(result, Result) else type(result).__name__
        for result in results
    ]


def kill(pool: EnginePool, number: signal.Signals, engine: int = 0) -> None:
    os.kill(pool.engines[engine].client.pid, number)


@pytest.mark.parametrize(
    ("fault", "failure", "kind"),
    [
        (faulty.ERROR, "failed", "error"),
        (faulty.NAN, "failed", "nan"),
        (faulty.ALONE_TOO_LARGE, "out-of-memory", "out-of-memory"),
    ],
)
def test_in_every_place_of_a_batch_a_fault_is_its_own_images_alone(
    faulty_engine: Shared, fault: int, failure: str, kind: str
) -> None:
    loop, pool, batches, _ = faulty_engine
    (expected,) = loop.run(ask(pool, [0]))
    for position in range(4):
        faults = [fault if place == position else 0 for place in range(4)]
        results = loop.run(ask_together(pool, faults))
        assert failures(results) == [failure if one == fault else "" for one in faults]
        healthy = [scores(result) for one, result in zip(faults, results, strict=True) if one == 0]
        np.testing.assert_allclose(healthy, [scores(expected)] * 3, atol=1e-5)
    assert {one for batch in batches for one in batch.failures} == {kind}
    assert max(batch.images for batch in batches) == 4


def test_what_is_too_much_for_the_device_is_run_in_halves(faulty_engine: Shared) -> None:
    loop, pool, batches, _ = faulty_engine
    assert failures(loop.run(ask_together(pool, [faulty.MEMORY, 0, 0, faulty.MEMORY]))) == [""] * 4
    assert [batch.failures for batch in batches if batch.images == 4] == [("out-of-memory",)]
    assert [batch.r0_seconds > 0 for batch in batches] == [not batch.failures for batch in batches]


def test_a_deadline_behind_a_queue_is_predicted_to_be_missed(faulty_engine: Shared) -> None:
    loop, pool, _, _ = faulty_engine

    async def main() -> None:
        for _ in range(8):
            await ask(pool, [faulty.SLOW])
        now = time.monotonic()
        last, first = (
            pool.claim("tiny", [Schedule.constant(4)], now + sign * 60) for sign in (1, -1)
        )
        alone = pool.predict(last)
        assert (
            0 < alone < faulty.SLOW_SECONDS
        )  # nothing is ahead, and the warm-up knows of no such images
        kill(pool, signal.SIGSTOP)
        asking = asyncio.ensure_future(ask(pool, [faulty.SLOW] * 7))
        await until(lambda: pool.queued == 7)
        assert (
            pool.predict(last) > 2 * faulty.SLOW_SECONDS
        )  # the last batches have shown it; these are two
        assert pool.predict(first) == alone  # such a job would overtake the whole queue
        with pool.lease(first):
            assert pool.predict(first) > alone  # an image is counted while it is decoded
        assert pool.predict(first) == alone
        assert pool.retry_after() >= 1
        kill(pool, signal.SIGCONT)
        assert failures(await asking) == [""] * 7

    loop.run(main())


def test_a_stopped_process_is_replaced(faulty_engine: Shared) -> None:
    loop, pool, _, restarts = faulty_engine

    async def main() -> None:
        stopped = pool.engines[0].client
        began = time.monotonic()
        kill(pool, signal.SIGSTOP)
        assert failures(await ask(pool, [0] * 8)) == ["EngineLost"] * 8
        assert time.monotonic() - began < 2.5 * PATIENT.silent
        assert not pool.ready
        with pytest.raises(Overloaded) as caught, pool.lease():
            pass
        assert caught.value.retry_after
        await until(lambda: pool.held == 0)
        assert not stopped.alive  # its slots are free only since it cannot read them any more
        await back(pool)

    loop.run(main())
    assert restarts == ["0"]


def test_a_killed_process_is_replaced_and_who_was_not_in_it_keeps_the_slot(
    faulty_engine: Shared,
) -> None:
    loop, pool, _, restarts = faulty_engine

    async def main() -> None:
        with pool.lease() as lease:  # a request that is still being decoded
            asking = asyncio.ensure_future(ask(pool, [faulty.HANG] + [0] * 6))
            await until(lambda: pool.queued == 7 and pool.engines[0].pulse().began > 0)
            kill(pool, signal.SIGKILL)
            assert failures(await asking) == ["EngineLost"] * 7
            await until(lambda: pool.held == 1)
            with pytest.raises(EngineLost):
                await lease.run("tiny", [Schedule.constant(0)], 1)
        assert pool.held == 0
        await back(pool)

    loop.run(main())
    assert restarts == ["0"]


@pytest.mark.parametrize("fault", [faulty.HANG, faulty.STICKY], ids=["hung batch", "lost device"])
def test_what_no_retry_can_cure_ends_the_process(faulty_engine: Shared, fault: int) -> None:
    loop, pool, _, restarts = faulty_engine

    async def main() -> None:
        assert failures(await ask(pool, [fault, 0, 0])) == ["EngineLost"] * 3
        await back(pool)

    loop.run(main())
    assert restarts == ["0"]


def test_of_two_engines_one_dies_and_the_other_goes_on(tiny_folder: Path) -> None:
    labels = tiny_folder / "labels.txt"
    text = labels.read_text()

    async def main() -> None:
        patience = replace(PATIENCE, starts=1)
        async with running([configuration(tiny_folder)] * 2, patience=patience) as pool:
            assert pool.models["tiny"].device == "cpu,cpu"
            for engine in (0, 1):
                kill(pool, signal.SIGSTOP, engine)
            asking = asyncio.ensure_future(ask(pool, [0] * 8))
            await until(lambda: pool.queued == 8)
            assert [engine.client.queued for engine in pool.engines] == [
                4,
                4,
            ]  # each to the one with less to do
            kill(pool, signal.SIGKILL, 0)
            kill(pool, signal.SIGCONT, 1)
            assert sorted(failures(await asking)) == [""] * 4 + ["EngineLost"] * 4
            assert pool.ready
            await until(lambda: pool.held == 0)
            assert failures(await ask(pool, [0] * 8)) == [""] * 8
            await back(pool)
            labels.write_text("too few\n")  # so that it cannot be started again
            kill(pool, signal.SIGKILL, 0)
            await until(lambda: pool.models["tiny"].device == "cpu")
            assert pool.engines[0].given_up
            assert (pool.ready, pool.given_up) == (True, False)
            assert failures(await ask(pool, [0] * 8)) == [""] * 8

    try:
        asyncio.run(main())
    finally:
        labels.write_text(text)


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


async def back(pool: EnginePool) -> None:
    """Wait until all engines are ready again, and see that every slot can be used."""
    await until(lambda: all(engine.is_ready() for engine in pool.engines))
    assert failures(await ask(pool, [0] * 8)) == [""] * 8
    assert pool.held == 0


def scores(result: Result | BaseException) -> tuple[float, ...]:
    assert isinstance(result, Result)
    return result.outcome.scores


def test_a_device_that_survives_no_acceleration_serves_without_any(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither of the two starts that teach it counts as one that failed, of which one would be too
    many.
    """
    patience = replace(PATIENCE, starts=1)

    async def main() -> None:
        async with running(
            [configuration(tiny_folder)], module="tests.server.engine.unsafe", patience=patience
        ) as pool:
            assert pool.models["tiny"].acceleration == "reference"
            assert failures(await ask(pool, [0] * 4)) == [""] * 4

    asyncio.run(main())
    said = [
        record.getMessage()
        for record in caplog.records
        if "starting it again" in record.getMessage()
    ]
    assert ["CUDA graphs raised" in said[0], "the optimised network raised" in said[1]] == [
        True,
        True,
    ]
    assert len(said) == 2
