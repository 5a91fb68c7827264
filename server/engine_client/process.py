"""The API's side of one engine process: starts it, hands it jobs, gives their outcomes back, confirms its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.errors import EngineLost, EngineStartError
from server.ipc.channel import AsyncChannel, ChannelClosed
from server.ipc.engine_config import EngineConfig
from server.ipc.heartbeat import Heartbeat, HeartbeatPage
from server.ipc.messages import (
    BatchDone,
    Cancel,
    Job,
    Outcome,
    Ready,
    SlotsReady,
    StartFailed,
    Stop,
)
from server.ipc.shared_memory import create_memory
from server.latency.cost import Estimate
from server.latency.queueing import WorkEstimate, answer_seconds, busy_seconds

MODULE = "server.engine"
_KILL_SECONDS = 30.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Result:
    """What a request gets: its outcome, and the batch that it was in."""

    outcome: Outcome
    batch: BatchDone


@dataclass(frozen=True)
class Pending:
    """A job that the engine has not answered yet. ``work`` is its share of what `EngineClient.work` sums up."""

    job: Job
    claim: WorkEstimate
    work: int
    future: asyncio.Future[Result]


class EngineProcess:
    """One engine process from its start to its confirmed end. A process that is started again is another client.

    Args:
        memory: descriptor of the slots' memory.
        on_batch: called with every batch's numbers, in the event loop.
        on_free: called with every slot that the engine has no more use for.
        module: what the process runs.

    Attributes:
        ready: it takes jobs.
        work: predicted work of the jobs that it has not answered, in the unit of `submit`.
        estimates: of each model's speed, by name; those of the last batch.
    """

    def __init__(
        self,
        config: EngineConfig,
        memory: int,
        on_batch: Callable[[BatchDone], None],
        on_free: Callable[[int], None],
        module: str = MODULE,
    ) -> None:
        self._config = config
        self._on_batch = on_batch
        self._on_free = on_free
        self._pending: dict[int, Pending] = {}
        self._channel: AsyncChannel | None = None
        self.ready = False
        self.work = 0
        self.estimates: dict[str, Estimate] = {}
        self._connection, theirs = socket.socketpair()
        descriptor = create_memory("tome-pulse", HeartbeatPage.SIZE)
        self._page = HeartbeatPage(descriptor)
        inherited = (theirs.fileno(), memory, descriptor)
        # A plain interpreter, which inherits three descriptors and nothing else.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *map(str, inherited)],
            env=environment(),
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        os.close(descriptor)

    @property
    def queued(self) -> int:
        """Jobs that the engine has not answered yet."""
        return len(self._pending)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def pulse(self) -> Heartbeat:
        """What the process shows of itself; nothing once it has ended."""
        return self._page.read() if self.alive else Heartbeat()

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def claims(self) -> list[WorkEstimate]:
        """What its jobs need, those that run now included."""
        return [pending.claim for pending in self._pending.values()]

    def busy_seconds(self, claims: Sequence[WorkEstimate]) -> float:
        """Seconds until it will have done ``claims``, all of which it has or may get."""
        return max(0.0, busy_seconds(claims, self.estimates, self._config.max_batch) - self._done())

    def answer_seconds(self, claim: WorkEstimate, ahead: Sequence[WorkEstimate]) -> float:
        """Seconds until it would have done ``claim`` after ``ahead``; see `server.latency.queueing.answer_seconds`."""
        return answer_seconds(claim, ahead, self._done(), self.estimates, self._config.max_batch)

    def _done(self) -> float:
        """Seconds of the batch that runs now that are over."""
        pulse = self.pulse
        return min(time.monotonic() - pulse.began, pulse.predicted) if pulse.began else 0.0

    async def start(self, timeout: float) -> Ready:
        """Wait until the models are loaded. Jobs may follow after `begin`.

        Raises:
            EngineStartError: it cannot start, ended, or took longer than ``timeout`` seconds.
        """
        self._channel = await AsyncChannel.open(self._connection)
        self._channel.send(self._config)
        try:
            message = await asyncio.wait_for(self._channel.receive(), timeout)
        except ChannelClosed:
            code = await self.exit_code()
            raise EngineStartError(
                f"the engine process ended while starting (exit code {code})"
            ) from None
        except TimeoutError:
            raise EngineStartError(
                f"the engine was not ready within {timeout:g} s (TOME_START_TIMEOUT)"
            ) from None
        if isinstance(message, StartFailed):
            raise EngineStartError(
                message.reason, explained=message.safer is None, safer=message.safer
            )
        assert isinstance(message, Ready)
        self.estimates = dict(message.estimates)
        return message

    def begin(self, slot_bytes: int) -> None:
        """The slots are there, each of ``slot_bytes``: take jobs from now on."""
        assert self._channel is not None
        self._channel.send(SlotsReady(slot_bytes))
        self.ready = True

    async def pump(self) -> None:
        """Give outcomes back until the engine closes its end."""
        assert self._channel is not None
        with contextlib.suppress(ChannelClosed):
            while True:
                batch = await self._channel.receive()
                assert isinstance(batch, BatchDone)
                self._on_batch(batch)
                for outcome in batch.outcomes:
                    self._deliver(outcome, batch)
                if batch.estimate is not None:
                    self.estimates[batch.model] = batch.estimate

    def submit(self, job: Job, claim: WorkEstimate, work: int) -> asyncio.Future[Result]:
        """Hand a job to the engine, whose slot is its own until it answers or ends. Cancelling the future cancels it.

        Args:
            claim: what it needs.
            work: what the job adds to `work`.
        """
        assert self.ready and self._channel is not None
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: self._cancel(job.id) if done.cancelled() else None)
        self._pending[job.id] = Pending(job, claim, work, future)
        self.work += work
        self._channel.send(job)
        return future

    def fail_pending(self, retry_after: float) -> None:
        """The engine is lost: tell everyone who waits. Their slots stay taken until `end` has confirmed it."""
        self.ready = False
        for pending in self._pending.values():
            if not pending.future.done():
                error = EngineLost(
                    "the model process was lost; please retry", retry_after=retry_after
                )
                pending.future.set_exception(error)

    async def end(self) -> None:
        """Kill the process, wait until it is gone, and free the slots that it held.

        Raises:
            EngineStartError: the kernel cannot end it, so neither its slots nor its device can be
                used again.
        """
        self.ready = False
        limit = time.monotonic() + _KILL_SECONDS
        while self.alive:
            self._process.kill()
            await asyncio.sleep(_POLL_SECONDS)
            if time.monotonic() > limit:
                raise EngineStartError(f"the engine process {self.pid} cannot be killed")
        for pending in self._pending.values():
            self._on_free(pending.job.slot)
        self._pending.clear()
        self.work = 0
        if self._channel is not None:
            self._channel.close()
        else:
            self._connection.close()

    async def stop(self, timeout: float) -> None:
        """Let the process finish what it has, and end; kill it after ``timeout`` seconds."""
        if self.ready and self._channel is not None:
            self._channel.send(Stop())
        else:
            self._process.kill()  # it would hear of a stop only when its models are loaded
        limit = time.monotonic() + timeout
        while self.alive:
            if time.monotonic() > limit:
                self._process.kill()
            await asyncio.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """Have the kernel end the process, whatever it does."""
        if self.alive:
            self._process.kill()

    def wait(self, timeout: float) -> None:
        """Block until the process has ended, ``timeout`` seconds at most."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    async def exit_code(self) -> int | None:
        """Of the process, which ends about now; None if it does not. Negative: the signal that killed it."""
        limit = time.monotonic() + 1
        while self.alive and time.monotonic() < limit:
            await asyncio.sleep(_POLL_SECONDS)
        return self._process.poll()

    def _cancel(self, job_id: int) -> None:
        if self._channel is not None:
            self._channel.send(Cancel(job_id))

    def _deliver(self, outcome: Outcome, batch: BatchDone) -> None:
        pending = self._pending.pop(outcome.id)
        self.work -= pending.work
        self._on_free(pending.job.slot)
        if not pending.future.done():
            pending.future.set_result(Result(outcome, batch))


def environment() -> dict[str, str]:
    """What the engine process finds in its environment: ours, less what it must not know."""
    ours = {name: value for name, value in os.environ.items() if name != "TOME_API_KEYS"}
    return ours | {
        # Idle OpenMP threads give their core back at once: the API needs it (measured in
        # benchmarks/).
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000"),
        # oneDNN keeps what it compiled for each shape, with large tables; by default of 1024
        # shapes.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256"),
        "PYTHONUNBUFFERED": "1",
        # This very package, and never one of that name in the working directory, which -P leaves
        # out.
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
        ),
    }
