"""Sounds through real workers: right results, in order, one upload without the others."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from server.decoding.pool import DecodePool, backoff
from server.errors import BadMedia, ConfigError, Overloaded, Refusal, TooLarge
from server.media.decoded import SoundInfo, VideoInfo, Window
from server.media.modality import Modality
from tests.server.decoding.pools import (
    CLIP,
    DECODER,
    DECODERS,
    LIMITS,
    SOUND,
    TRANSFORM,
    children,
    open_files,
    running_pool,
    tasks_have_started,
    until,
    value,
)

ROOT = Path(__file__).resolve().parents[3]


def test_windows_and_media_come_back() -> None:
    async def main() -> None:
        async with running_pool() as pool:
            decoded = await pool.decode(b"windows 3", TRANSFORM)
            assert decoded.inputs.shape == (3, 1, 4, 8)
            assert decoded.inputs.dtype == np.float32
            assert decoded.windows == (Window(0.0, 0.5), Window(1.0, 1.5), Window(2.0, 2.5))
            assert decoded.media == SoundInfo(1.5, 44_100, 2)

    asyncio.run(main())


def test_one_worker_decodes_sounds_and_videos() -> None:
    async def main() -> None:
        async with running_pool(modalities=(Modality.AUDIO, Modality.VIDEO)) as pool:
            assert await value(pool, b"3") == 3.0
            decoded = await pool.decode(b"7", CLIP)
            assert decoded.inputs.shape == (6, 3, 8, 8)
            assert decoded.inputs.dtype == np.uint8
            assert set(decoded.inputs.ravel().tolist()) == {7}
            assert [window.crop for window in decoded.windows] == [0, 1, 2] * 2
            assert decoded.media == VideoInfo(4.0, 100, 25.0, 64, 48, "h264")
            with pytest.raises(BadMedia, match="the video made its decoder fail"):
                await pool.decode(b"exit 1", CLIP)
            assert await value(pool, b"4") == 4.0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("modalities", "megabytes"),
    [((Modality.AUDIO,), 600), ((Modality.AUDIO, Modality.VIDEO), 1_000)],
)
def test_workers_get_the_memory_of_what_they_decode(
    modalities: tuple[Modality, ...], megabytes: int
) -> None:
    async def main() -> None:
        async with running_pool(modalities=modalities) as pool:
            with pytest.raises(TooLarge, match=f"more than {megabytes} MB of memory"):
                await value(pool, "allocate")

    asyncio.run(main())


def test_each_of_many_uploads_gets_its_own_result() -> None:
    async def main() -> None:
        async with running_pool(workers=2) as pool:
            values = await asyncio.gather(*(value(pool, str(n)) for n in range(300)))
            assert values == [float(n) for n in range(300)]

    asyncio.run(main())


def test_a_body_of_many_megabytes_arrives_whole() -> None:
    body = b"length ".ljust(5_000_001, b"x")

    async def main() -> None:
        async with running_pool() as pool:
            assert await value(pool, body) == len(body)
            assert await value(pool, b"") == 0.0

    asyncio.run(main())


def test_uploads_that_wait_are_served_in_their_order() -> None:
    finished: list[int] = []

    async def one(pool: DecodePool, number: int) -> None:
        await value(pool, str(number))
        finished.append(number)

    async def main() -> None:
        async with running_pool() as pool:
            await asyncio.gather(*(one(pool, number) for number in range(20)))

    asyncio.run(main())
    assert finished == list(range(20))


def test_time_in_the_queue_is_no_decode_time() -> None:
    async def main() -> None:
        async with running_pool(timeout=6.0) as pool:
            # Together they take longer than the timeout; each could take four times as long.
            await asyncio.gather(*(value(pool, "sleep 1.3") for _ in range(5)))

    asyncio.run(main())


def test_works_in_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with running_pool(workers=2) as pool:
            values = await asyncio.gather(*(value(pool, str(n)) for n in range(20)))
            assert values == [float(n) for n in range(20)]
            task = asyncio.create_task(value(pool, "hang"))
            await tasks_have_started()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await value(pool, "7") == 7.0

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_worker_is_replaced_after_its_last_task() -> None:
    lost: list[str] = []

    async def main() -> None:
        async with running_pool(max_tasks=2, on_worker_lost=lost.append) as pool:
            before = children()
            assert [await value(pool, str(n)) for n in range(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]
            assert not before & children()
        assert lost == []

    asyncio.run(main())


def test_a_signal_to_stop_ends_no_worker() -> None:
    async def main() -> None:
        async with running_pool() as pool:
            before = children()
            task = asyncio.create_task(value(pool, "sleep 0.3"))
            await tasks_have_started()
            for worker in before:
                os.kill(worker, signal.SIGTERM)
                os.kill(worker, signal.SIGINT)
            await task
            assert await value(pool, "1") == 1.0
            assert children() == before

    asyncio.run(main())


def test_a_stop_ends_everything() -> None:
    async def main() -> None:
        pool = DecodePool(1, LIMITS, 60.0, decoders=DECODERS)
        assert not pool.ready
        await pool.start(SOUND)
        assert pool.ready
        decoding = asyncio.create_task(value(pool, "hang"))
        waiting = asyncio.create_task(value(pool, "1"))
        await tasks_have_started()
        await pool.stop()
        assert not pool.ready
        for task in (decoding, waiting):
            with pytest.raises(Overloaded) as refused:
                await task
            assert refused.value.reason is Refusal.DRAINING
        with pytest.raises(Overloaded):
            await value(pool, "2")

    files, before = open_files(), children()
    asyncio.run(main())
    assert children() == before
    assert open_files() == files


def test_kill_needs_no_event_loop() -> None:
    before = children()

    async def main() -> DecodePool:
        pool = DecodePool(2, LIMITS, 60.0, decoders=DECODERS)
        await pool.start(SOUND)
        return pool

    with asyncio.Runner() as runner:
        pool = runner.run(main())
        assert len(children() - before) == 2
        pool.kill()
        assert children() == before
        runner.run(pool.stop())
    pool.kill()


def test_nothing_replaces_what_was_killed() -> None:
    lost: list[str] = []

    async def main() -> None:
        before = children()
        async with running_pool(workers=2, on_worker_lost=lost.append) as pool:
            pool.kill()
            await until(lambda: len(asyncio.all_tasks()) == 1)
            assert children() == before

    asyncio.run(main())
    assert lost == []


@pytest.mark.parametrize(
    ("decoder", "text"),
    [
        ("tests.server.decoding.missing:decode", "No module named"),
        ("tests.server.decoding.decoders:missing", "missing"),
        ("os:_exit", "ended while starting|TypeError"),
    ],
)
def test_a_decoder_that_cannot_be_loaded_is_a_mistake_in_the_configuration(
    decoder: str, text: str
) -> None:
    files, before = open_files(), children()

    async def main() -> None:
        with pytest.raises(ConfigError, match=text):
            async with running_pool(workers=2, decoders={Modality.AUDIO: decoder}):
                pass

    asyncio.run(main())
    assert children() == before
    assert open_files() == files


def test_who_waits_is_refused_when_no_worker_can_be_started(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with running_pool() as pool:
            # As if it had been removed.
            pool._decoders = {Modality.AUDIO: "tests.server.decoding.missing:decode"}
            with pytest.raises(Exception, match="made its decoder fail"):
                await value(pool, "exit 1")
            with pytest.raises(Overloaded) as refused:
                await value(pool, "1")
            assert refused.value.reason is Refusal.NOT_READY
            assert not pool.ready
            pool._decoders = {Modality.AUDIO: DECODER}
            await until(lambda: pool.ready)
            assert await value(pool, "1") == 1.0

    asyncio.run(main())
    assert "No module named" in caplog.text


def test_the_api_process_imports_no_decoder() -> None:
    code = (
        "import server.decoding.pool, sys; sys.exit(bool({'soundfile', 'soxr', 'av', 'torch',"
        " 'server.audio.front_end', 'server.video.front_end'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_shortage_of_files_refuses_the_upload_alone() -> None:
    async def main() -> None:
        async with running_pool() as pool:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
            try:
                with pytest.raises(Overloaded) as refused:
                    await value(pool, "1")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert refused.value.reason is Refusal.MEMORY_FULL
            assert await value(pool, "1") == 1.0

    asyncio.run(main())


def test_attempts_to_start_slow_down() -> None:
    assert [backoff(failures) for failures in range(4)] == [0.0, 0.1, 0.2, 0.4]
    assert backoff(1_000) == 30.0
