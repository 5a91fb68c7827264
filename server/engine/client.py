"""The API's side of an engine process: starts it, owns the slots, hands it jobs and gives their outcomes back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.channel import AsyncChannel, ChannelClosed
from server.engine.config import EngineConfig
from server.errors import EngineLost, EngineStartError, Overloaded
from server.messages import BatchDone, Begin, Cancel, Job, ModelInfo, Outcome, Ready, StartFailed, Stop, Want
from server.slots import Slots, create_memory
from tome_core.schedule import Schedule

log = logging.getLogger("tome.engine")


@dataclass(frozen=True)
class Result:
    """What a request gets: its outcome, and the batch that it was in."""

    outcome: Outcome
    batch: BatchDone


class Lease:
    """One slot, held by one request from admission on; see `EngineClient.lease`."""

    def __init__(self, client: EngineClient, slot: int) -> None:
        self._client, self._slot = client, slot
        self.submitted = False

    def pixels(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """The slot's memory, to write the decoded image ``(C, H, W)`` into."""
        return self._client.slots.view(self._slot, shape)

    async def run(
        self, model: str, schedule: Schedule, top_k: int, deadline: float | None = None, want: Want = "classes"
    ) -> Result:
        """Submit the image and wait for its outcome. Cancelling the wait cancels the job.

        Raises:
            EngineLost: the engine process ended first.
        """
        future = self._client.submit(self._slot, model, schedule, top_k, deadline, want)
        self.submitted = True
        return await future


class EngineClient:
    """One engine process. `spawn` is cheap and comes first, so that models load while the API imports what it needs.

    Args:
        on_batch: called with every batch's numbers, in the event loop.
    """

    def __init__(self, config: EngineConfig, on_batch: Callable[[BatchDone], None]) -> None:
        self._config, self.on_batch = config, on_batch
        self._memory = create_memory()
        self._free = list(range(config.slots))
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[int, asyncio.Future[Result]]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._channel: AsyncChannel | None = None
        self.slots: Slots
        self.models: dict[str, ModelInfo] = {}
        self.ready = False
        self.stopping = False

    @property
    def queued(self) -> int:
        """Jobs that the engine has not answered yet."""
        return len(self._waiting)

    @property
    def held(self) -> int:
        """Slots that are not free."""
        return self._config.slots - len(self._free)

    def spawn(self) -> None:
        """Start the process: a plain interpreter, which inherits two descriptors and nothing else."""
        self._connection, theirs = socket.socketpair()
        environment = os.environ | {
            # Idle OpenMP threads give their core back at once: the API needs it (measured in benchmarks/).
            "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
            "PYTHONUNBUFFERED": "1",
            # This very package, and never one of that name in the working directory, which -P leaves out.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
        }
        command = [sys.executable, "-P", "-m", "server.engine", str(theirs.fileno()), str(self._memory)]
        self._process = subprocess.Popen(
            command, env=environment, pass_fds=(theirs.fileno(), self._memory), stdin=subprocess.DEVNULL
        )
        theirs.close()

    async def start(self, timeout: float) -> None:
        """Wait until the engine is ready.

        Raises:
            EngineStartError: it cannot start, ended, or took longer than ``timeout`` seconds.
        """
        assert self._connection is not None
        self._channel = await AsyncChannel.open(self._connection)
        self._channel.send(self._config)
        try:
            message = await asyncio.wait_for(self._channel.receive(), timeout)
        except ChannelClosed:
            raise EngineStartError(f"the engine process ended while starting (exit code {self._exit_code()})") from None
        except TimeoutError:
            raise EngineStartError(f"the engine was not ready within {timeout:g} s (TOME_START_TIMEOUT)") from None
        if isinstance(message, StartFailed):
            raise EngineStartError(message.reason)
        assert isinstance(message, Ready)
        self.slots = Slots(self._memory, self._config.slots, message.slot_bytes, create=True)
        self._channel.send(Begin(message.slot_bytes))
        self.models = {model.name: model for model in message.models}
        self.ready = True

    async def serve(self) -> None:
        """Give outcomes back until the engine ends; then fail what still waits. Returns when it has ended."""
        assert self._channel is not None
        try:
            while True:
                batch = await self._channel.receive()
                assert isinstance(batch, BatchDone)
                self.on_batch(batch)
                for outcome in batch.outcomes:
                    self._deliver(outcome, batch)
        except ChannelClosed:
            pass
        finally:
            self.ready = False
            for slot, future in self._waiting.values():
                self._free.append(slot)
                if not future.done():
                    future.set_exception(EngineLost("the model process ended; please retry", retry_after=5))
            self._waiting.clear()
        if not self.stopping:
            log.error("the engine process was lost (exit code %s)", self._exit_code())

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """Hold one slot. It is free again on leaving, or, once its job was submitted, when the engine answers.

        Raises:
            Overloaded: no slot is free, or the engine is not ready.
        """
        if not self.ready:
            raise Overloaded("the models are not loaded", retry_after=5, reason="not-ready")
        if not self._free:
            raise Overloaded(f"{self._config.slots} images are waiting already", retry_after=1, reason="queue-full")
        slot = self._free.pop()
        lease = Lease(self, slot)
        try:
            yield lease
        finally:
            if not lease.submitted:
                self._free.append(slot)

    def submit(
        self, slot: int, model: str, schedule: Schedule, top_k: int, deadline: float | None, want: Want
    ) -> asyncio.Future[Result]:
        """Hand ``slot`` and the image in it to the engine. Cancelling the future cancels the job.

        Raises:
            EngineLost: there is no engine any more; the slot is still the caller's.
        """
        if not self.ready or self._channel is None:
            raise EngineLost("the model process ended; please retry", retry_after=5)
        job = Job(next(self._ids), slot, model, schedule, top_k, time.monotonic(), deadline, want)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: self._cancel(job.id) if done.cancelled() else None)
        self._waiting[job.id] = (slot, future)
        self._channel.send(job)
        return future

    async def stop(self, timeout: float) -> int:
        """Let the engine finish what it has, and end; kill it after ``timeout`` seconds. Returns its exit code."""
        self.stopping = True
        if self._channel is not None:
            self._channel.send(Stop())
        elif self._connection is not None:
            self._connection.close()
        deadline = time.monotonic() + timeout
        while self._process is not None and self._process.poll() is None:
            if time.monotonic() > deadline:
                self._process.kill()
            await asyncio.sleep(0.02)
        if self._channel is not None:
            self._channel.close()
        return self._exit_code() or 0

    def _cancel(self, job_id: int) -> None:
        if self._channel is not None:
            self._channel.send(Cancel(job_id))

    def _deliver(self, outcome: Outcome, batch: BatchDone) -> None:
        slot, future = self._waiting.pop(outcome.id)
        self._free.append(slot)
        if not future.done():
            future.set_result(Result(outcome, batch))

    def _exit_code(self) -> int | None:
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        return self._process.returncode

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
