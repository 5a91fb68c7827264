"""Calls in threads, from an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

import pytest

from server.api.pipeline.threads import Threads


def multiply(number: int) -> int:
    return number * 2


def test_results_and_errors_come_back_to_who_waits() -> None:
    def fail() -> None:
        raise ValueError("the reason")

    async def main() -> None:
        threads = Threads(3)
        calls = [threads.run(partial(multiply, number)) for number in range(200)]
        assert await asyncio.gather(*calls) == [number * 2 for number in range(200)]
        with pytest.raises(ValueError, match="the reason"):
            await threads.run(fail)
        assert await threads.run(lambda: "the thread goes on") == "the thread goes on"

    asyncio.run(main())


def test_no_more_calls_run_at_once_than_there_are_threads() -> None:
    running = 0
    most = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1

    async def main() -> None:
        threads = Threads(2)
        await asyncio.gather(*(threads.run(work) for _ in range(10)))

    asyncio.run(main())
    assert most == 2


def test_a_call_that_is_cancelled_while_it_waits_does_not_run() -> None:
    free = threading.Event()
    called: list[str] = []

    async def main() -> None:
        threads = Threads(1)
        busy = asyncio.ensure_future(threads.run(lambda: free.wait(30)))
        waiting = asyncio.ensure_future(threads.run(lambda: called.append("waiting")))
        await asyncio.sleep(0)
        waiting.cancel()
        free.set()
        assert await busy
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await threads.run(lambda: called.append("last"))

    asyncio.run(main())
    assert called == ["last"]


def test_a_call_whose_loop_has_ended_harms_no_other() -> None:
    free = threading.Event()
    threads = Threads(1)

    async def leave() -> None:
        waiting = asyncio.ensure_future(threads.run(lambda: free.wait(30)))
        await asyncio.sleep(0)
        waiting.cancel()

    async def ask() -> str:
        return await threads.run(lambda: "answer")

    asyncio.run(leave())
    free.set()
    assert asyncio.run(ask()) == "answer"
