"""The pool of decode workers, as the API process uses it.

A worker that crashes, hangs, takes too much memory or is cancelled is killed and replaced. That
costs its own upload alone: the others wait for another worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Collection, Mapping

from server.decoding.idle import IdleWorkers
from server.decoding.memory import anonymous_memory, read_inputs, write_sealed
from server.decoding.messages import Refused, Task
from server.decoding.process import (
    DecodeProcess,
    Loss,
    TaskNotBegun,
    WorkerLost,
    WorkerStartError,
)
from server.decoding.sandbox import ADDRESS_SPACE_BYTES
from server.errors import BadMedia, ConfigError, Overloaded, Refusal, RequestError, TooLarge
from server.media.decoded import Decoded
from server.media.limits import MediaLimits
from server.media.modality import Modality
from server.media.transforms import MediaTransform

log = logging.getLogger("tome.decoding")

DECODERS = {
    Modality.AUDIO: "server.audio.front_end:prepare",
    Modality.VIDEO: "server.video.front_end:prepare",
}

_REMEDY = (
    "Sound needs pip install 'tome-serve[audio]', video 'tome-serve[video]', and both a process for"
    " each of TOME_DECODE_WORKERS"
)
_START_SECONDS = 30.0  # a start takes 0.4 s; a busy machine may take many times as long
_FAILED_STARTS = 3  # in a row, after which nobody waits for the next one
_FIRST_BACKOFF = 0.1
_LONGEST_BACKOFF = 30.0
_MAX_DOUBLINGS = 10
_KILL_SECONDS = 5.0
_RETRY_SECONDS = 1.0
# Memory that a library loses, a little a body, would make a worker refuse good ones in the end.
_MAX_TASKS = 1_000


class DecodePool:
    """Decodes sounds and videos in worker processes.

    It belongs to the event loop in which `start` is called, whose thread must not end before the
    pool is stopped: the kernel kills workers together with the thread that started them.

    Args:
        workers: how many bodies are decoded at a time.
        limits: on one sound and on one video.
        timeout: most seconds for one body, from when a worker gets it.
        on_worker_lost: called with a `Loss` for every worker that is lost.
        decoders: what the workers run, by modality, as ``module:function``, called as
            `server.audio.front_end.prepare`.
        address_space: most bytes of memory that a worker maps; None: what its modalities need.
        max_tasks: after which a worker is replaced.
    """

    def __init__(
        self,
        workers: int,
        limits: Mapping[Modality, MediaLimits],
        timeout: float,
        *,
        on_worker_lost: Callable[[str], None] = lambda loss: None,
        decoders: Mapping[Modality, str] = DECODERS,
        address_space: int | None = None,
        max_tasks: int = _MAX_TASKS,
    ) -> None:
        self._count = workers
        self._limits = limits
        self._timeout = timeout
        self._on_worker_lost = on_worker_lost
        self._all_decoders = decoders
        self._decoders: dict[Modality, str] = {}  # of the modalities that are served
        self._address_space = address_space
        self._max_tasks = max_tasks
        self._numbers = itertools.count()
        self._idle = IdleWorkers()
        self._processes: set[DecodeProcess] = set()  # that have not ended
        self._keepers: list[asyncio.Task[None]] = []
        self._failing: set[int] = set()  # keepers whose last starts have failed
        self._stopping = False
        self._told_missing = False

    @property
    def ready(self) -> bool:
        """Whether bodies can be decoded: now, or as soon as lost workers are replaced."""
        running = bool(self._keepers) and not self._stopping
        return running and len(self._failing) < self._count

    @property
    def modalities(self) -> frozenset[Modality]:
        """What the workers decode."""
        return frozenset(self._decoders)

    @property
    def _worker_bytes(self) -> int:
        """The most bytes of memory that a worker maps."""
        if self._address_space is not None:
            return self._address_space
        return max(ADDRESS_SPACE_BYTES[modality] for modality in self._decoders)

    async def start(self, modalities: Collection[Modality]) -> None:
        """Start the workers, and wait until all are ready.

        Args:
            modalities: what each of them can decode.

        Raises:
            ConfigError: one cannot start. The others are ended.
        """
        self._decoders = {modality: self._all_decoders[modality] for modality in modalities}
        starts = [self._start_process() for _ in range(self._count)]
        try:
            processes = await asyncio.gather(*starts)
        except (OSError, WorkerStartError) as error:
            await self.stop()
            raise ConfigError(f"no decode worker can start: {error}. {_REMEDY}") from error
        self._keepers = [
            asyncio.create_task(self._keep(number, process))
            for number, process in enumerate(processes)
        ]

    async def decode(self, body: bytes, transform: MediaTransform) -> Decoded:
        """Return the windows of a sound or video. Cancelling kills its worker, if it has one.

        Raises:
            RequestError: the body is refused (400, 413, 415), costs its worker (400, 413), or there
                is no worker or no memory for it (503).
        """
        limits = self._limits[transform.modality]
        task = Task(next(self._numbers), transform, limits, cpu_seconds=self._timeout)
        while True:
            worker = await self._take()
            try:
                return await self._decode_by(worker, task, body)
            except TaskNotBegun:
                continue
            except WorkerLost as lost:
                raise self._explain(lost.loss, task.modality) from lost
            except OSError as error:
                noun = task.modality.noun
                log.error("no memory for a %s: %s", noun, error)
                raise Overloaded(
                    f"no memory for this {noun}",
                    reason=Refusal.MEMORY_FULL,
                    retry_after=_RETRY_SECONDS,
                ) from error
            finally:
                if worker.tasks >= self._max_tasks:
                    worker.retire()
                self._idle.put(worker)

    async def stop(self) -> None:
        """End all workers. What they still decode fails."""
        self._stopping = True
        self._idle.fail(self._refuse)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        closing = [process.close() for process in self._processes]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing), _KILL_SECONDS)
        self._processes.clear()

    def kill(self) -> None:
        """Kill all workers, with or without a running event loop."""
        self._stopping = True
        for process in self._processes:
            process.kill()
        limit = time.monotonic() + _KILL_SECONDS
        for process in self._processes:
            process.wait(max(0.0, limit - time.monotonic()))

    async def _take(self) -> DecodeProcess:
        """Wait for a worker."""
        if not self.ready:
            raise self._refuse()
        return await self._idle.take()

    async def _decode_by(self, worker: DecodeProcess, task: Task, body: bytes) -> Decoded:
        """Decode ``body`` by ``worker``.

        Raises:
            RequestError: the worker refuses it.
            TaskNotBegun, WorkerLost: see `DecodeProcess.run`.
            OSError: the system has no memory or open files.
        """
        with (
            anonymous_memory("tome-body", len(body)) as body_memory,
            anonymous_memory("tome-inputs", task.result_bytes) as result_memory,
        ):
            await write_sealed(body_memory, body)
            reply = await worker.run(task, body_memory, result_memory, self._timeout)
            if isinstance(reply, Refused):
                raise reply.error
            inputs = await read_inputs(result_memory, reply.shape, task.transform.dtype)
            return Decoded(inputs, reply.windows, reply.media)

    def _explain(self, loss: Loss, modality: Modality) -> RequestError:
        """Return what the loss of a worker is to the client whose body it decoded."""
        if self._stopping:
            return self._refuse()
        if loss in (Loss.TIMEOUT, Loss.CPU):
            return TooLarge(f"decoding took more than {self._timeout:g} s")
        if loss is Loss.MEMORY:
            megabytes = self._worker_bytes / 1e6
            return TooLarge(f"decoding took more than {megabytes:.0f} MB of memory")
        return BadMedia(f"the {modality.noun} made its decoder fail")

    def _refuse(self) -> Overloaded:
        """Return the refusal of a body while no worker can be had."""
        if self._stopping:
            return Overloaded("the server is stopping", reason=Refusal.DRAINING)
        return Overloaded(
            "no process that decodes can be started",
            reason=Refusal.NOT_READY,
            retry_after=_RETRY_SECONDS,
        )

    async def _keep(self, number: int, process: DecodeProcess) -> None:
        """Let ``process`` work, and replace it whenever it is gone, until the pool stops."""
        while True:
            self._idle.put(process)
            await process.gone.wait()
            self._idle.discard(process)
            await self._close(process)
            if self._stopping:
                return
            self._report_loss(process)
            # One that did nothing may die again at once.
            process = await self._replace(number, failures=0 if process.tasks else 1)

    async def _replace(self, number: int, failures: int) -> DecodeProcess:
        """Start processes until one is ready, and return it.

        Args:
            number: of the keeper.
            failures: the starts in a row that were of no use.
        """
        while True:
            await asyncio.sleep(backoff(failures))
            try:
                process = await self._start_process()
            except (OSError, WorkerStartError) as error:
                failures += 1
                text = "no decode worker can start: %s; next attempt in %g s. %s"
                log.error(text, error, backoff(failures), _REMEDY)
                if failures >= _FAILED_STARTS:
                    self._give_up_waiting(number)
            else:
                self._failing.discard(number)
                return process

    async def _start_process(self) -> DecodeProcess:
        """Start a process, and wait until it is ready.

        Raises:
            OSError: the system cannot start one.
            WorkerStartError: it has failed.
        """
        process = DecodeProcess(self._decoders, self._worker_bytes)
        self._processes.add(process)
        try:
            ready = await process.wait_until_ready(_START_SECONDS)
        except WorkerStartError:
            await self._close(process)
            raise
        if ready.missing and not self._told_missing:
            self._told_missing = True
            log.info("decode workers run without: %s", "; ".join(ready.missing))
        return process

    async def _close(self, process: DecodeProcess) -> None:
        """Wait until the process has ended."""
        await process.close()
        self._processes.discard(process)

    def _report_loss(self, process: DecodeProcess) -> None:
        """Log and count why the process is gone, unless that was planned."""
        if process.loss is None:
            return
        level = logging.DEBUG if process.loss is Loss.CANCELLED else logging.WARNING
        log.log(level, "decode worker %d was lost: %s; it is replaced", process.pid, process.loss)
        self._on_worker_lost(process.loss)

    def _give_up_waiting(self, number: int) -> None:
        """Refuse who waits, if keeper ``number`` is the last whose starts fail."""
        self._failing.add(number)
        if not self.ready:
            self._idle.fail(self._refuse)


def backoff(failures: int) -> float:
    """Return the seconds to wait before the next start: 0, then 0.1, 0.2, 0.4 ... up to 30."""
    if not failures:
        return 0.0
    doublings = min(failures - 1, _MAX_DOUBLINGS)
    return min(_FIRST_BACKOFF * 2**doublings, _LONGEST_BACKOFF)
