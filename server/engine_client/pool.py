"""The pool of all engines: routing of jobs, admission to slots, predicted completion."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from server.engine_client.health import HealthPolicy
from server.engine_client.lease import Lease
from server.engine_client.process import MODULE, EngineProcess, Result
from server.engine_client.served_models import combine, device_independent
from server.engine_client.supervisor import Supervisor
from server.errors import EngineLost, EngineStartError, Overloaded, Refusal
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import Accelerations, BatchDone, Job, ModelInfo, OutputKind, Ready
from server.ipc.shared_memory import Slots, create_memory
from server.latency.queueing import WorkEstimate, whole_retry_seconds
from tome_core.schedule import Schedule

log = logging.getLogger("tome.engine")

# A killed process ends within milliseconds, unless the kernel is still releasing its GPU. `kill`
# blocks the exit of the server, so it does not wait for longer than this for the kernel.
_KILL_SECONDS = 5.0
_RETRY_VALID_SECONDS = 0.1  # time for which a computed `Retry-After`, in whole seconds, is reused


class EnginePool:
    """One engine per device, with slots that all engines share.

    The pool is made before the event loop runs: the models load while the API is being imported.

    Args:
        configs: one per engine; they differ in their devices only.
        on_batch: called in the event loop with every completed batch.
        on_models: called with the served models whenever an engine has become ready.
        on_restart: called with the name of an engine whenever it gets a new process.
        module: the Python module that the engine processes run.

    Attributes:
        models: the served models, by name; they stay while engines restart.
        slots: the slots in shared memory; set when the first engine is ready.
    """

    def __init__(
        self,
        configs: Sequence[EngineConfig],
        policy: HealthPolicy,
        on_batch: Callable[[BatchDone], None],
        on_models: Callable[[tuple[ModelInfo, ...]], None],
        on_restart: Callable[[str], None],
        module: str = MODULE,
    ) -> None:
        self._on_batch = on_batch
        self._on_models = on_models
        self._module = module
        self._memory = create_memory()
        self._slot_bytes = 0
        self._slot_count = configs[0].slots
        self._free_slots = list(range(self._slot_count))
        # By slot: images that are admitted, but not submitted to an engine yet.
        self._unsubmitted_work: dict[int, WorkEstimate] = {}
        self._target_seconds = configs[0].target_seconds
        self._retry_seconds = 0
        self._retry_valid_until = 0.0
        self._job_ids = itertools.count(1)
        self._was_ready = asyncio.Event()
        self.slots: Slots
        self.models: dict[str, ModelInfo] = {}
        self.supervisors = [
            Supervisor(
                name=str(index),
                launch=partial(self._launch, config),
                on_ready=self._on_ready,
                on_restart=on_restart,
                policy=policy,
            )
            for index, config in enumerate(configs)
        ]

    @property
    def ready(self) -> bool:
        """Whether at least one engine accepts jobs."""
        return any(supervisor.process.ready for supervisor in self.supervisors)

    @property
    def given_up(self) -> bool:
        """Whether all engines are given up, so that none will ever accept jobs again."""
        return all(supervisor.given_up for supervisor in self.supervisors)

    @property
    def queued(self) -> int:
        """Number of jobs that are submitted and not answered."""
        return sum(supervisor.process.queued for supervisor in self.supervisors)

    @property
    def used_slots(self) -> int:
        """Number of slots that are not free."""
        return self._slot_count - len(self._free_slots)

    def retry_after(self) -> int:
        """Return the seconds until the shortest queue is empty, or until an engine is ready."""
        if not self.ready:
            return whole_retry_seconds(min(supervisor.ready_in for supervisor in self.supervisors))
        now = time.monotonic()
        if now > self._retry_valid_until:
            # Every refused request needs this number, and to compute it takes a pass over the
            # whole queue.
            self._retry_valid_until = now + _RETRY_VALID_SECONDS
            queues = self._queues(due=float("inf"))
            shortest = min(process.queue_seconds(queue) for process, queue in queues)
            self._retry_seconds = whole_retry_seconds(shortest)
        return self._retry_seconds

    def estimate_work(
        self,
        model: str,
        choices: Sequence[Schedule],
        deadline: float | None,
    ) -> WorkEstimate:
        """Return the work of an image under the last of ``choices``, the one that merges most.

        Admission must not refuse an image that could be in time, so it counts the least work. The
        routing in `submit` only compares engines, and counts the first of ``choices``.
        """
        due = deadline
        if due is None:
            due = time.monotonic() + self._target_seconds
        geometry = self.models[model].geometry
        return WorkEstimate(model, geometry.image_cost(choices[-1]), due)

    def seconds_to_complete(self, work: WorkEstimate) -> float:
        """Return the seconds until the first engine would complete one more image.

        Ahead of it is all work that is due earlier, including images that are not submitted yet,
        each under the schedule that merges most.
        """
        queues = self._queues(work.due)
        seconds = [process.completion_seconds(work, ahead) for process, ahead in queues]
        return min(seconds, default=0.0)

    def check_room(self) -> None:
        """Check that an image can be admitted.

        Raises:
            Overloaded: no slot is free, or no engine is ready.
        """
        if not self.ready:
            raise Overloaded(
                "the models are not loaded",
                retry_after=self.retry_after(),
                reason=Refusal.NOT_READY,
            )
        if not self._free_slots:
            raise Overloaded(
                f"{self._slot_count} images are waiting already",
                retry_after=self.retry_after(),
                reason=Refusal.QUEUE_FULL,
            )

    @contextlib.contextmanager
    def lease(self, work: WorkEstimate | None = None) -> Iterator[Lease]:
        """Hold one slot.

        The slot is free again on leaving; or, if its job was submitted, when the engine has
        answered or ended.

        Args:
            work: the work of the image, which counts as queued from now on.

        Raises:
            Overloaded: no slot is free, or no engine is ready.
        """
        self.check_room()
        slot = self._free_slots.pop()
        lease = Lease(self.slots, slot, self.submit)
        if work is not None:
            self._unsubmitted_work[slot] = work
        try:
            yield lease
        finally:
            if not lease.submitted:
                self._unsubmitted_work.pop(slot, None)
                self._free_slots.append(slot)

    def submit(
        self,
        slot: int,
        model: str,
        choices: Sequence[Schedule],
        top_k: int,
        deadline: float | None,
        output_kind: OutputKind,
        normalised: bool,
    ) -> asyncio.Future[Result]:
        """Send the image in ``slot`` to the engine with the least outstanding work.

        Cancelling the future cancels the job.

        Raises:
            EngineLost: no engine is ready; the slot still belongs to the caller.
        """
        processes = self._ready_processes()
        if not processes:
            raise EngineLost(
                "the model process was lost; please retry",
                retry_after=self.retry_after(),
            )
        job = Job(
            id=next(self._job_ids),
            slot=slot,
            model=model,
            choices=tuple(choices),
            top_k=top_k,
            submitted=time.monotonic(),
            deadline=deadline,
            output_kind=output_kind,
            normalised=normalised,
        )
        work = self._unsubmitted_work.pop(slot, None) or self.estimate_work(
            model, choices, deadline
        )
        # The tokens only compare engines. With several choices the scheduler uses the first one,
        # which merges least, unless the queue is long.
        tokens = block_tokens(self.models[model], choices[0])
        process = min(processes, key=_outstanding_tokens)
        return process.submit(job, work, tokens)

    async def run(self) -> None:
        """Keep all engines alive until `stop`; continue without an engine that is given up.

        Raises:
            EngineStartError: all engines are given up; or an engine reports a mistake in the
                settings, of which the operator should know.
        """
        tasks = {
            asyncio.create_task(supervisor.run()): supervisor for supervisor in self.supervisors
        }
        try:
            while tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    supervisor = tasks.pop(task)
                    error = task.exception()
                    if error is not None:
                        self._give_up(supervisor, error, is_last=not tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def wait_ready(self) -> None:
        """Return when an engine has become ready for the first time."""
        await self._was_ready.wait()

    async def stop(self, timeout: float) -> None:
        """Let all engines complete their jobs and end; kill them after ``timeout`` seconds."""
        await asyncio.gather(*(supervisor.stop(timeout) for supervisor in self.supervisors))

    def kill(self) -> None:
        """Kill all engine processes at once, and block until they have ended."""
        for supervisor in self.supervisors:
            supervisor.kill()
        for supervisor in self.supervisors:
            supervisor.process.wait(_KILL_SECONDS)

    def _launch(self, config: EngineConfig, accelerations: Accelerations) -> EngineProcess:
        return EngineProcess(
            replace(config, accelerations=accelerations),
            memory=self._memory,
            on_batch=self._on_batch,
            on_free=self._free_slots.append,
            module=self._module,
        )

    def _ready_processes(self) -> list[EngineProcess]:
        return [supervisor.process for supervisor in self.supervisors if supervisor.process.ready]

    def _queues(self, due: float) -> list[tuple[EngineProcess, list[WorkEstimate]]]:
        """Return each ready engine with the work that it runs before a job that is due at ``due``.

        Images that are not submitted yet are divided evenly among the engines.
        """
        processes = self._ready_processes()
        unsubmitted = list(self._unsubmitted_work.values())
        queues = []
        for index, process in enumerate(processes):
            engine_part = unsubmitted[index :: len(processes)]
            queued = [*process.queued_work(), *engine_part]
            ahead = [work for work in queued if work.due <= due]
            queues.append((process, ahead))
        return queues

    def _give_up(self, supervisor: Supervisor, error: BaseException, *, is_last: bool) -> None:
        """Continue without an engine that ended with ``error``, or raise the error."""
        if is_last or not isinstance(error, EngineStartError):
            raise error
        if supervisor.is_configuration_error(error):
            raise error
        log.critical(
            "engine %s: %s; it is given up, the other engines continue",
            supervisor.name,
            error,
        )
        self._update_models()

    def _on_ready(self, supervisor: Supervisor, ready: Ready) -> int:
        """Register the models of an engine that has become ready; return the bytes of a slot."""
        if not self.models:
            self._slot_bytes = ready.slot_bytes
            self.slots = Slots(self._memory, self._slot_count, ready.slot_bytes, create=True)
        else:
            before = device_independent(tuple(self.models.values()))
            if device_independent(ready.models) != before:
                raise EngineStartError(
                    "the models have changed since the server started; restart the server"
                )
        supervisor.models = ready.models
        self._update_models()
        self._was_ready.set()
        return self._slot_bytes

    def _update_models(self) -> None:
        """Combine the models of all engines that are not given up, and report them."""
        reports = [
            supervisor.models
            for supervisor in self.supervisors
            if supervisor.models and not supervisor.given_up
        ]
        self.models = {model.name: model for model in combine(reports)}
        self._on_models(tuple(self.models.values()))


def block_tokens(model: ModelInfo, schedule: Schedule) -> int:
    """Return the tokens at the inputs of all blocks, a measure of work to compare engines by."""
    counts = schedule.tokens(model.depth, model.tokens, model.prefix)
    return sum(counts[:-1])


def _outstanding_tokens(process: EngineProcess) -> int:
    return process.outstanding_tokens
