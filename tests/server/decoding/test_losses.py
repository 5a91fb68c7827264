"""A worker that fails costs its own upload alone, and is replaced."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.decoding.pool import DecodePool
from server.errors import BadMedia, RequestError, TooLarge
from tests.server.decoding.conftest import SharedPool
from tests.server.decoding.pools import (
    children,
    open_files,
    running_pool,
    tasks_have_started,
    until,
    value,
)

ROOT = Path(__file__).resolve().parents[3]

FAILURES = [
    ("exit 0", BadMedia, "crash"),
    ("exit 7", BadMedia, "crash"),
    ("crash", BadMedia, "crash"),
    ("raise", BadMedia, "crash"),
    ("close", BadMedia, "crash"),
    ("allocate", TooLarge, "memory"),
    ("send {}", BadMedia, "protocol"),
    ("send no JSON", BadMedia, "protocol"),
    ('send {"kind": "ready", "missing": []}', BadMedia, "protocol"),
    ("flood", BadMedia, "protocol"),
    ('inject {"instance": "elsewhere"}', BadMedia, "protocol"),
    ("windows 4", BadMedia, "crash"),  # more than there is memory for
]


@pytest.mark.parametrize(("body", "error", "loss"), FAILURES, ids=[row[0] for row in FAILURES])
def test_the_upload_fails_and_the_next_succeeds(
    shared: SharedPool, body: str, error: type[RequestError], loss: str
) -> None:
    async def main() -> None:
        with pytest.raises(error):
            await value(shared.pool, body)
        assert await value(shared.pool, "5") == 5.0

    shared.runner.run(main())
    assert shared.lost == [loss]


# The kernel limits CPU time to little more, and is first if this process has to wait for a core.
@pytest.mark.parametrize(("body", "losses"), [("hang", {"timeout"}), ("burn", {"timeout", "cpu"})])
def test_a_decoder_that_takes_too_long_is_killed(body: str, losses: set[str]) -> None:
    lost: list[str] = []

    async def main() -> None:
        async with running_pool(timeout=1.0, on_worker_lost=lost.append) as pool:
            with pytest.raises(TooLarge, match=re.escape("decoding took more than 1 s")):
                await value(pool, body)
            await until(lambda: bool(lost))

    asyncio.run(main())
    assert len(lost) == 1 and set(lost) <= losses


def test_a_refusal_keeps_its_worker(shared: SharedPool) -> None:
    async def main() -> None:
        before = children()
        with pytest.raises(TooLarge) as refused:
            await value(shared.pool, "refuse")
        assert refused.value.detail == "a sound may take 120 s"
        assert refused.value.extensions == {"allowed": 120}
        assert await value(shared.pool, "1") == 1.0
        assert children() == before

    shared.runner.run(main())
    assert shared.lost == []


def test_a_second_reply_is_not_that_of_the_next_upload(shared: SharedPool) -> None:
    async def main() -> None:
        values = [value(shared.pool, body) for body in ("forge", "5", "6")]
        assert await asyncio.gather(*values) == [0.0, 5.0, 6.0]
        await until(lambda: bool(shared.lost))

    shared.runner.run(main())
    assert shared.lost == ["protocol"]


def test_a_cancelled_upload_ends_its_worker_alone() -> None:
    lost: list[str] = []

    async def main() -> None:
        async with running_pool(workers=2, on_worker_lost=lost.append) as pool:
            hanging = asyncio.create_task(value(pool, "hang"))
            other = asyncio.create_task(value(pool, "sleep 0.3"))
            waiting = asyncio.create_task(value(pool, "3"))
            gives_up = asyncio.create_task(value(pool, "4"))
            await tasks_have_started()
            gives_up.cancel()
            hanging.cancel()
            for task in (hanging, gives_up):
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await waiting == 3.0
            assert await other == 0.0
            await until(lambda: bool(lost))

    asyncio.run(main())
    assert lost == ["cancelled"]


def test_a_worker_that_dies_idle_costs_no_upload() -> None:
    lost: list[str] = []

    async def main() -> None:
        before = children()
        async with running_pool(workers=2, on_worker_lost=lost.append) as pool:
            (victim, _) = children() - before
            os.kill(victim, signal.SIGKILL)
            await until(lambda: victim not in children())
            assert [await value(pool, str(n)) for n in range(20)] == list(map(float, range(20)))
            await until(lambda: len(children() - before) == 2)

    asyncio.run(main())
    assert lost == ["crash"]


@pytest.mark.parametrize("losses", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_losses_leave_nothing_behind(losses: int) -> None:
    lost: list[str] = []

    async def main() -> None:
        async with running_pool(on_worker_lost=lost.append) as pool:
            files = open_files()
            for number in range(losses):
                with pytest.raises(BadMedia):
                    await value(pool, f"exit {number}")
                assert len(children()) <= len(before) + 1
            await until(lambda: open_files() == files)

    before = children()
    asyncio.run(main())
    assert children() == before
    assert lost == ["crash"] * losses


async def _kill_under_load(pool: DecodePool, kills: int, others: set[int]) -> tuple[int, int]:
    """Decode without a pause, and kill workers again and again.

    Args:
        others: processes that are none of the pool's.

    Returns:
        How many uploads have failed, and how many had another's result.
    """
    failed = 0
    wrong = 0
    done = 0
    killing = True

    async def upload(number: int) -> None:
        nonlocal failed, wrong, done
        while killing:
            try:
                wrong += await value(pool, str(number)) != float(number)
                done += 1
            except BadMedia:
                failed += 1

    async def kill() -> None:
        nonlocal killing
        for _ in range(kills):
            enough = done + 10
            await until(lambda: done >= enough)  # noqa: B023
            os.kill(min(children() - others), signal.SIGKILL)
        killing = False

    await asyncio.gather(kill(), *(upload(number) for number in range(6)))
    return failed, wrong


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_under_load_cost_one_upload_each_at_most(kills: int) -> None:
    lost: list[str] = []

    async def main() -> None:
        others = children()
        async with running_pool(workers=2, on_worker_lost=lost.append) as pool:
            failed, wrong = await _kill_under_load(pool, kills, others)
            assert wrong == 0
            assert failed <= kills
            assert await value(pool, "1") == 1.0
            assert set(lost) == {"crash"}

    asyncio.run(main())


ORPHANS = """
import asyncio, os, sys
from tests.server.decoding.pools import children, running_pool, tasks_have_started, value

async def main():
    async with running_pool(workers=2) as pool:
        asyncio.create_task(value(pool, "hang"))
        await tasks_have_started()
        print(*children(), flush=True)
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def test_workers_end_with_the_process_that_started_them() -> None:
    process = subprocess.run(
        [sys.executable, "-c", ORPHANS], cwd=ROOT, capture_output=True, check=False
    )
    assert process.returncode == -signal.SIGKILL
    workers = process.stdout.split()
    assert len(workers) == 2

    def ended(worker: bytes) -> bool:
        try:
            status = Path(f"/proc/{int(worker)}/stat").read_text()
        except FileNotFoundError:
            return True
        return status.rpartition(")")[2].split()[0] in "ZX"

    async def main() -> None:
        await until(lambda: all(map(ended, workers)))

    asyncio.run(main())
