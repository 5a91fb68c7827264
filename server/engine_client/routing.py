"""Routing: an image's hold on a slot, which engine gets it, and when that would complete it.

Engine and time follow from the predicted seconds of each engine, by its own cost model: admission
prices an image on the engine that would complete it first, and that engine gets it.
`server.latency.queueing` is the prediction.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from server.engine_client.group import EngineGroup
from server.engine_client.process import Result
from server.engine_client.slots import SlotAllocator
from server.engine_client.supervisor import Supervisor
from server.errors import EngineLost, Overloaded, Refusal
from server.ipc.messages import Job, OutputKind
from server.latency.cost import ImageCost
from server.latency.queueing import WorkEstimate, whole_retry_seconds
from tome_core.schedule import Schedule

_RETRY_VALID_SECONDS = 0.1  # time for which a computed `Retry-After`, in whole seconds, is reused

_job_ids = itertools.count(1)


class Router:
    """Gives slots to images, and images to engines.

    Args:
        target_seconds: time in which an image without a deadline is due.
    """

    def __init__(self, engines: EngineGroup, target_seconds: float) -> None:
        self.engines = engines
        self._slots = engines.slots
        self._target_seconds = target_seconds
        # By slot: images that are admitted, but not submitted to an engine yet.
        self._unsubmitted: dict[int, WorkEstimate] = {}
        # Clients choose schedules, and most choose the same few.
        self._image_cost = lru_cache(maxsize=1024)(self._compute_image_cost)
        self._retry_seconds = 0
        self._retry_valid_until = 0.0

    @property
    def ready(self) -> bool:
        """Whether at least one engine accepts jobs."""
        return bool(self._ready_engines())

    def retry_after(self) -> int:
        """Return the seconds until the shortest queue is empty, or until an engine is ready."""
        engines = self._ready_engines()
        if not engines:
            return whole_retry_seconds(min(engine.ready_in for engine in self.engines.supervisors))
        now = time.monotonic()
        if now > self._retry_valid_until:
            # Every refused request needs this number, and to compute it takes a pass over the
            # whole queue.
            self._retry_valid_until = now + _RETRY_VALID_SECONDS
            shortest = min(
                engine.process.queue_seconds(self._queue(engine, due=float("inf")))
                for engine in engines
            )
            self._retry_seconds = whole_retry_seconds(shortest)
        return self._retry_seconds

    def estimate_work(
        self,
        model: str,
        choices: Sequence[Schedule],
        deadline: float | None,
    ) -> WorkEstimate:
        """Return the work of an image under the last of ``choices``, the one that merges most.

        Admission must not refuse an image that could be in time, so it counts the least work.
        """
        due = deadline
        if due is None:
            due = time.monotonic() + self._target_seconds
        return WorkEstimate(model, self._image_cost(model, choices[-1]), due)

    @property
    def free_slots(self) -> int:
        """How many images could be leased a slot now."""
        return len(self._slots.free)

    def seconds_to_complete(self, work: WorkEstimate, images: int = 1) -> float:
        """Return the seconds, at least, until ``images`` more of ``work`` would be complete.

        That is not before an engine has run its part of them; the first one that would is counted.
        Ahead of them is all work that is due earlier, including images that are not submitted yet,
        each under the schedule that merges most.
        """
        engines = self._ready_engines()
        if not engines:
            return 0.0
        part = math.ceil(images / len(engines))
        return min(self._completion_seconds(work, engine, part) for engine in engines)

    def check_ready(self) -> None:
        """Raise `Overloaded` while no engine is ready."""
        if not self.ready:
            raise Overloaded(
                "the models are not loaded",
                retry_after=self.retry_after(),
                reason=Refusal.NOT_READY,
            )

    def check_room(self) -> None:
        """Raise `Overloaded` while no slot is free."""
        if not self._slots.free:
            raise Overloaded(
                f"{self._slots.count} images are waiting already",
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
        self.check_ready()
        self.check_room()
        slot = self._slots.free.pop()
        if work is not None:
            self._unsubmitted[slot] = work
        lease = Lease(self._slots, slot, self.submit)
        try:
            yield lease
        finally:
            if not lease.submitted:
                self._unsubmitted.pop(slot, None)
                self._slots.release(slot)

    def submit(self, job: Job) -> asyncio.Future[Result]:
        """Send a job to the engine that would complete it first.

        Cancelling the future cancels the job.

        Raises:
            EngineLost: no engine is ready; the slot still belongs to the caller.
        """
        if not self.ready:
            raise EngineLost(
                "the model process was lost; please retry",
                retry_after=self.retry_after(),
            )
        work = self._unsubmitted.pop(job.slot, None) or self.estimate_work(
            job.model, job.choices, job.deadline
        )
        return self._first_to_complete(work).process.submit(job, work)

    def _compute_image_cost(self, model: str, schedule: Schedule) -> ImageCost:
        return self.engines.models[model].geometry.image_cost(schedule)

    def _ready_engines(self) -> list[Supervisor]:
        return [engine for engine in self.engines.supervisors if engine.process.ready]

    def _first_to_complete(self, work: WorkEstimate) -> Supervisor:
        engines = self._ready_engines()
        if len(engines) == 1:
            return engines[0]  # without a prediction, which takes a pass over the queue

        def seconds_and_length(engine: Supervisor) -> tuple[float, int]:
            return self._completion_seconds(work, engine), engine.process.queued

        return min(engines, key=seconds_and_length)

    def _completion_seconds(self, work: WorkEstimate, engine: Supervisor, images: int = 1) -> float:
        ahead = self._queue(engine, work.due) + [work] * (images - 1)
        return engine.process.completion_seconds(work, ahead)

    def _queue(self, engine: Supervisor, due: float) -> list[WorkEstimate]:
        """Return the work that ``engine`` runs before a job that is due at ``due``.

        Images that are not submitted yet are divided evenly among the engines.
        """
        engines = self._ready_engines()
        part = slice(engines.index(engine), None, len(engines))
        unsubmitted = list(self._unsubmitted.values())[part]
        queued = [*engine.process.queued_work(), *unsubmitted]
        return [work for work in queued if work.due <= due]


class Lease:
    """One image's hold on a slot, from `Router.lease`: write the image, then run it.

    A sound or video may write and run several of its windows, one after the other.

    Args:
        slots: among them ``slot``.
        submit: `Router.submit`.

    Attributes:
        submitted: whether an engine has the job, and the slot is not kept; then the engine's answer
            frees the slot.
    """

    def __init__(
        self,
        slots: SlotAllocator,
        slot: int,
        submit: Callable[[Job], asyncio.Future[Result]],
    ) -> None:
        self._slots = slots
        self._slot = slot
        self._submit = submit
        self._normalised = False
        self.submitted = False

    def write(self, pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> None:
        """Copy an image ``(C, H, W)`` into the slot: decoded, uint8; or normalised, float32."""
        self._normalised = pixels.dtype != np.uint8
        dtype = np.float32 if self._normalised else np.uint8
        np.copyto(self._slots.memory.view(self._slot, pixels.shape, dtype), pixels)

    async def run(
        self,
        model: str,
        choices: Sequence[Schedule],
        top_k: int,
        deadline: float | None = None,
        output_kind: OutputKind = "classes",
        request_id: str = "",
        keep_slot: bool = False,
    ) -> Result:
        """Submit the image and wait for its result. Cancelling the wait cancels the job.

        The other arguments are those of `Job`.

        Args:
            keep_slot: whether the lease holds the slot beyond the answer, so that another input can
                be written and run.

        Raises:
            EngineLost: no engine is ready, or the engine ended before the image was run.
        """
        job = Job(
            id=next(_job_ids),
            slot=self._slot,
            model=model,
            choices=tuple(choices),
            top_k=top_k,
            submitted=time.monotonic(),
            deadline=deadline,
            output_kind=output_kind,
            normalised=self._normalised,
            request_id=request_id,
        )
        future = self._submit(job)
        if keep_slot:
            self._slots.keep(self._slot)
        else:
            self.submitted = True
        return await future
