"""The workers that wait for a task, and the tasks that wait for a worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from server.decoding.process import DecodeProcess


class IdleWorkers:
    """Gives workers to tasks, first come, first served."""

    def __init__(self) -> None:
        self._workers: deque[DecodeProcess] = deque()
        self._waiting: deque[asyncio.Future[DecodeProcess]] = deque()

    async def take(self) -> DecodeProcess:
        """Wait for a worker; the caller gives it back by `put`, unless it is gone.

        Raises:
            Exception: that of `fail`, if it was called in the meantime.
        """
        while self._workers:
            worker = self._workers.popleft()
            if not worker.gone.is_set():
                return worker
        future: asyncio.Future[DecodeProcess] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.put(future.result())
            raise

    def put(self, worker: DecodeProcess) -> None:
        """Give ``worker`` to who waits longest, or keep it. One that is gone is forgotten."""
        if worker.gone.is_set():
            return
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(worker)
                return
        self._workers.append(worker)

    def discard(self, worker: DecodeProcess) -> None:
        """Forget ``worker`` if it is here."""
        with contextlib.suppress(ValueError):
            self._workers.remove(worker)

    def fail(self, make_error: Callable[[], Exception]) -> None:
        """Let all who wait now fail, each with an error of its own."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(make_error())
