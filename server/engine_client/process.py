"""One engine process, as the API process uses it: start, jobs, results, end."""

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
from functools import partial
from pathlib import Path

from server.errors import EngineLost, EngineStartError
from server.ipc.channel import AsyncChannel, BadMessage, ChannelClosed, check_type
from server.ipc.engine_config import EngineConfig
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
from server.ipc.shared_memory import Heartbeat, HeartbeatPage, create_memory
from server.latency import queueing
from server.latency.cost import CostModel
from server.latency.queueing import WorkEstimate

MODULE = "server.engine"
# Before a restart, the kernel may need seconds to release the memory of a killed process and its
# GPU. A process that is still there after this time hangs in a driver.
_KILL_SECONDS = 30.0
_POLL_SECONDS = 0.02
_EXIT_SECONDS = 1.0


@dataclass(frozen=True)
class Result:
    """The result of one job: its outcome, and the batch in which it ran."""

    outcome: Outcome
    batch: BatchDone


@dataclass(frozen=True)
class Pending:
    """A job that is submitted and not answered."""

    job: Job
    work: WorkEstimate
    future: asyncio.Future[Result]


class EngineProcess:
    """One engine process, from its start to its end. A restart makes another `EngineProcess`.

    Args:
        memory: descriptor of the shared memory for the slots.
        on_batch: called in the event loop with every completed batch.
        on_free: called with every slot that the engine does not use any more.
        module: the Python module that the process runs.

    Raises:
        OSError: the system has no more files, processes or memory.

    Attributes:
        ready: whether it accepts jobs.
        cost_models: the latest cost model of each model, by name.
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
        self._pending: dict[int, Pending] = {}  # by job
        self._channel: AsyncChannel | None = None
        self.ready = False
        self.cost_models: dict[str, CostModel] = {}
        with contextlib.ExitStack() as after_start, contextlib.ExitStack() as after_failure:
            self._connection, engine_connection = socket.socketpair()
            after_failure.callback(self._connection.close)
            after_start.callback(engine_connection.close)
            page = create_memory("tome-heartbeat", HeartbeatPage.SIZE)
            after_start.callback(os.close, page)
            self._page = HeartbeatPage(page)
            self._process = _spawn(module, (engine_connection.fileno(), memory, page))
            after_failure.pop_all()

    @property
    def queued(self) -> int:
        """Number of jobs that are submitted and not answered."""
        return len(self._pending)

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    @property
    def heartbeat(self) -> Heartbeat:
        """The state that the process reports; an empty one if the process has ended."""
        return self._page.read() if self.alive else Heartbeat()

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def queued_work(self) -> list[WorkEstimate]:
        """Return the work of all jobs that are not answered, the current batch included."""
        return [pending.work for pending in self._pending.values()]

    def queue_seconds(self, queue: Sequence[WorkEstimate]) -> float:
        """Return the seconds from now until all of ``queue`` is run, the current batch included."""
        seconds = queueing.queue_seconds(queue, self.cost_models, self._config.max_batch)
        elapsed, _ = self._current_batch_seconds()
        return max(0.0, seconds - elapsed)

    def completion_seconds(self, work: WorkEstimate, ahead: Sequence[WorkEstimate]) -> float:
        """Return the seconds until ``work`` is complete, as `server.latency.queueing` says."""
        elapsed, remaining = self._current_batch_seconds()
        return queueing.completion_seconds(
            work,
            ahead,
            elapsed,
            self.cost_models,
            self._config.max_batch,
            remaining,
        )

    def _current_batch_seconds(self) -> tuple[float, float]:
        """Return for how long the current batch has run, and how much of its prediction is left."""
        heartbeat = self.heartbeat
        if not heartbeat.batch_started:
            return 0.0, 0.0
        elapsed = min(time.monotonic() - heartbeat.batch_started, heartbeat.predicted_seconds)
        return elapsed, heartbeat.predicted_seconds - elapsed

    async def wait_until_loaded(self, timeout: float) -> Ready:
        """Send the configuration, and wait until the models are loaded.

        The constructor has started the process. Jobs may follow after `accept_jobs`.

        Raises:
            EngineStartError: the engine cannot start, has ended, or takes longer than ``timeout``
                seconds.
        """
        self._channel = await AsyncChannel.open(self._connection)
        self._channel.send(self._config)
        try:
            message = await asyncio.wait_for(self._channel.receive(), timeout)
            if not isinstance(message, StartFailed):
                message = check_type(message, Ready)
        except ChannelClosed:
            code = await self.exit_code()
            text = f"the engine process ended while starting (exit code {code})"
            raise EngineStartError(text) from None
        except TimeoutError:
            text = f"the engine was not ready within {timeout:g} s (TOME_START_TIMEOUT)"
            raise EngineStartError(text) from None
        except BadMessage as error:
            raise EngineStartError(str(error)) from error
        if isinstance(message, StartFailed):
            raise EngineStartError(
                message.reason,
                explained=message.safer is None,
                safer=message.safer,
            )
        self.cost_models = dict(message.cost_models)
        return message

    def accept_jobs(self, slot_bytes: int) -> None:
        """Tell the engine that the slots have ``slot_bytes`` bytes, and accept jobs from now on."""
        assert self._channel is not None
        self._channel.send(SlotsReady(slot_bytes))
        self.ready = True

    async def receive_batches(self) -> None:
        """Deliver the outcomes of all batches, until the engine closes its end of the channel.

        Raises:
            BadMessage: the engine sent something else.
        """
        assert self._channel is not None
        with contextlib.suppress(ChannelClosed):
            while True:
                batch = check_type(await self._channel.receive(), BatchDone)
                self._on_batch(batch)
                for outcome in batch.outcomes:
                    self._deliver(outcome, batch)
                if batch.cost_model is not None:
                    self.cost_models[batch.model] = batch.cost_model

    def submit(self, job: Job, work: WorkEstimate) -> asyncio.Future[Result]:
        """Send a job to the engine. Cancelling the future cancels the job.

        The job keeps its slot until the engine has answered or ended.

        Args:
            work: the work of the job, for predictions.
        """
        assert self.ready and self._channel is not None
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        future.add_done_callback(partial(self._cancel_job, job.id))
        self._pending[job.id] = Pending(job, work, future)
        self._channel.send(job)
        return future

    def fail_pending(self, retry_after: float) -> None:
        """Fail all jobs because the engine is lost. `close` frees their slots."""
        self.ready = False
        for pending in self._pending.values():
            if not pending.future.done():
                error = EngineLost(
                    "the model process was lost; please retry",
                    retry_after=retry_after,
                )
                pending.future.set_exception(error)

    async def close(self) -> None:
        """Kill the process, wait until it has ended, and free its slots.

        Raises:
            EngineStartError: the kernel cannot end the process, so that neither its slots nor its
                device can be used again.
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
        if self._channel is not None:
            self._channel.close()
        else:
            self._connection.close()

    async def stop(self) -> None:
        """Let the engine complete its jobs, and wait until its process has ended."""
        if self.ready and self._channel is not None:
            self._channel.send(Stop())
        else:
            self._process.kill()  # it reads no message before its models are loaded
        while self.alive:
            await asyncio.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """Kill the process."""
        if self.alive:
            self._process.kill()

    def wait(self, timeout: float) -> None:
        """Block until the process has ended, for at most ``timeout`` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    async def exit_code(self) -> int | None:
        """Wait up to a second for the process to end, and return its exit code.

        It is negative if a signal killed the process, and None if the process has not ended.
        """
        limit = time.monotonic() + _EXIT_SECONDS
        while self.alive and time.monotonic() < limit:
            await asyncio.sleep(_POLL_SECONDS)
        return self._process.poll()

    def _cancel_job(self, job_id: int, future: asyncio.Future[Result]) -> None:
        """Tell the engine that a job is cancelled, if its future ended so."""
        if future.cancelled() and self._channel is not None:
            self._channel.send(Cancel(job_id))

    def _deliver(self, outcome: Outcome, batch: BatchDone) -> None:
        """Free the slot of an answered job, and set the result of its future."""
        if outcome.id not in self._pending:
            raise BadMessage(f"the engine answered job {outcome.id}, which it does not have")
        pending = self._pending.pop(outcome.id)
        self._on_free(pending.job.slot)
        if not pending.future.done():
            pending.future.set_result(Result(outcome, batch))


def _spawn(module: str, descriptors: tuple[int, ...]) -> subprocess.Popen[bytes]:
    """Start a plain Python interpreter that inherits ``descriptors`` and no other file."""
    arguments = [str(descriptor) for descriptor in descriptors]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        env=environment(),
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
    )


def environment() -> dict[str, str]:
    """Return the environment of the engine process: that of the API process without its secrets."""
    inherited = {name: value for name, value in os.environ.items() if name != "TOME_API_KEYS"}
    # Idle OpenMP threads release their core soon: the API needs it (measured in benchmarks/).
    inherited.setdefault("GOMP_SPINCOUNT", "1000")
    # oneDNN keeps the compiled code of each shape, with large tables; its default is 1024 shapes.
    inherited.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    # The engine imports this very package, never one of that name in the working directory, which
    # the option -P leaves out of the path.
    package_root = str(Path(__file__).parents[2])
    search_path = [package_root, os.environ.get("PYTHONPATH", "")]
    return inherited | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, search_path)),
    }
