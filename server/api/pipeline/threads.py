"""Threads for what would block the event loop: decoding, parsing, drawing.

`concurrent.futures` does the same with a lock, a condition and two futures for each call, which
takes several times as long as a queue and a wake-up of the event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Call(NamedTuple):
    """A function to call, and who waits for its result."""

    function: Callable[[], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Threads:
    """Runs calls first come, first served. The threads start with the first call.

    Args:
        count: of the threads.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._started = False

    async def run(self, function: Callable[[], T]) -> T:
        """Return the result of ``function``. Cancelled while it waits, it is not called."""
        if not self._started:
            self._start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put(_Call(function, future, loop))
        return await future

    def _start(self) -> None:
        self._started = True
        for number in range(self._count):
            thread = threading.Thread(target=self._work, name=f"decode-{number}", daemon=True)
            thread.start()

    def _work(self) -> None:
        while True:
            _run(self._calls.get())


def _run(call: _Call) -> None:
    if call.future.cancelled():
        return
    result: Any = None
    error: BaseException | None = None
    try:
        result = call.function()
    except BaseException as raised:
        error = raised
    try:
        call.loop.call_soon_threadsafe(_deliver, call.future, result, error)
    except RuntimeError:
        return  # the loop is closed: nobody waits


def _deliver(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
