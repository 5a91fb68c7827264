"""Routing: an image's hold on a slot, which engine gets it, and when that would complete it.

Engine and time follow from the predicted seconds of each engine, by its own cost model: admission
prices an image on the engine that would complete it first, and that engine gets it.
`server.latency.queueing` is the prediction. The queue is that of all API processes: each records
the work of its images on the board.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from server.engine_client.engines import Engines
from server.engine_client.generation import Generation
from server.engine_client.link import EngineLink, Result
from server.errors import EngineLost, Overloaded, Refusal
from server.ipc.messages import Job, OutputKind, SecondPass
from server.latency import queueing
from server.latency.cost import NO_COST, ImageCost
from server.latency.queueing import WorkEstimate, whole_retry_seconds
from server.latency.second_passes import SecondPasses
from tome_core.schedule import Schedule

_RETRY_VALID_SECONDS = 0.1  # time for which a computed `Retry-After`, in whole seconds, is reused


class Router:
    """Gives slots to images, and images to engines.

    Args:
        target_seconds: time in which an image without a deadline is due.

    Attributes:
        second_passes: how many images take one.
    """

    def __init__(self, engines: Engines, target_seconds: float) -> None:
        self.engines = engines
        self._slots = engines.slots
        self._board = engines.board
        self._target_seconds = target_seconds
        self._job_ids = itertools.count(engines.worker + 1, engines.workers)
        # Clients choose schedules, and most choose the same few.
        self._image_cost = lru_cache(maxsize=1024)(self._compute_image_cost)
        self._model_index = lru_cache(maxsize=1024)(self._find_model_index)
        self.second_passes = SecondPasses()
        self._retry_seconds = 0
        self._retry_valid_until = 0.0

    @property
    def ready(self) -> bool:
        """Whether at least one engine accepts jobs."""
        return self.engines.ready

    def retry_after(self) -> int:
        """Return the seconds until the shortest queue is empty, or until an engine is ready."""
        links = self.engines.links
        if not links:
            return whole_retry_seconds(self.engines.ready_in())
        now = time.monotonic()
        if now > self._retry_valid_until:
            # Every refused request needs this number, and to compute it takes a pass over the
            # whole queue.
            self._retry_valid_until = now + _RETRY_VALID_SECONDS
            serving = self.engines.serving
            shortest = min(self._queue_seconds(serving, link) for link in links.values())
            self._retry_seconds = whole_retry_seconds(shortest)
        return self._retry_seconds

    def estimate_work(
        self,
        model: str,
        choices: Sequence[Schedule],
        deadline: float | None,
        second: SecondPass | None = None,
        generation: int | None = None,
    ) -> WorkEstimate:
        """Return the work of an image under the last of ``choices``, the one that merges most.

        Admission must not refuse an image that could be in time, so it counts the least work, that
        is without ``second``.

        Args:
            second: a second pass that images may take, which counts by its share of them.
            generation: to which the request belongs; None for the one that serves.
        """
        due = deadline
        if due is None:
            due = time.monotonic() + self._target_seconds
        number = self.engines.generation(generation).number
        image_cost = self._image_cost(number, model, choices[-1])
        second_cost = NO_COST
        if second is not None:
            whole_cost = self._image_cost(number, model, second.schedule)
            second_cost = whole_cost.of_share(second.shares[-1])
        return WorkEstimate(model, image_cost, due, second_cost, number)

    @property
    def max_batch(self) -> int:
        """How many images an engine runs in one batch, at most."""
        return self.engines.max_batch

    @property
    def slot_count(self) -> int:
        """How many slots this process has."""
        return self._slots.count

    @property
    def free_slots(self) -> int:
        """How many images could be leased a slot of this process now."""
        return len(self._slots.free)

    def seconds_to_complete(self, work: WorkEstimate, images: int = 1) -> float:
        """Return the seconds, at least, until ``images`` more of ``work`` would be complete.

        That is not before an engine has run its part of them; the first one that would is counted.
        Ahead of them is all work that is due earlier, including images that are not submitted yet,
        each under the schedule that merges most.
        """
        links = self.engines.generation(work.generation).links
        if not links:
            return 0.0
        part = math.ceil(images / len(links))
        return min(self._completion_seconds(work, link, part) for link in links.values())

    def check_ready(self) -> None:
        """Raise `Overloaded` while no engine is ready."""
        if not self.engines.links:
            raise self._not_ready()

    def _not_ready(self) -> Overloaded:
        return Overloaded(
            "the models are not loaded",
            retry_after=self.retry_after(),
            reason=Refusal.NOT_READY,
        )

    def check_room(self) -> None:
        """Raise `Overloaded` while no slot of this process is free."""
        if not self._slots.free:
            raise Overloaded(
                f"{self._slots.count} images are waiting already",
                retry_after=self.retry_after(),
                reason=Refusal.QUEUE_FULL,
            )

    def lease(self, work: WorkEstimate | None = None, generation: int | None = None) -> Lease:
        """Return a hold on one slot, which begins when its block is entered.

        The slot is free again on leaving; or, if its job was submitted, when the engine has
        answered or ended.

        Args:
            work: the work of the image, which counts as queued from the entry on.
            generation: to which the request belongs, where there is no ``work``; None for the one
                that serves.

        Raises:
            Overloaded: on entering: no slot is free, or no engine is ready.
        """
        number = generation if work is None else work.generation
        return Lease(self, work, self.engines.generation(number))

    def take_slot(self, work: WorkEstimate | None, generation: Generation) -> int:
        """Return a slot that was free. Raises as entering a `lease` does."""
        if not generation.links:
            raise self._not_ready()
        self.check_room()
        slot = self._slots.free.pop()
        if work is not None:
            self._board.admit(slot, self._model_index(generation.number, work.model), work)
        return slot

    def submit(
        self, job: Job, work: WorkEstimate | None = None, generation: int | None = None
    ) -> asyncio.Future[Result]:
        """Send a job to the engine that would complete it first.

        Cancelling the future cancels the job.

        Args:
            work: the work with which its slot was taken; None if the slot counts none yet.
            generation: see `lease`.

        Raises:
            EngineLost: no engine is ready; the slot still belongs to the caller.
        """
        number = generation if work is None else work.generation
        links = self.engines.generation(number).links
        if not links:
            raise EngineLost(
                "the model process was lost; please retry",
                retry_after=self.retry_after(),
            )
        if work is None:
            work = self.estimate_work(job.model, job.choices, job.deadline, job.second, number)
            self._board.admit(job.slot, self._model_index(work.generation, job.model), work)
        link = self._first_to_complete(work, job.slot)
        self._board.submit(job.slot, link.engine)
        return link.submit(job)

    def next_job_id(self) -> int:
        """Return an id that no job of any API process has."""
        return next(self._job_ids)

    def _compute_image_cost(self, generation: int, model: str, schedule: Schedule) -> ImageCost:
        return self.engines.generation(generation).models[model].geometry.image_cost(schedule)

    def _find_model_index(self, generation: int, model: str) -> int:
        return list(self.engines.generation(generation).models).index(model)

    def _first_to_complete(self, work: WorkEstimate, slot: int) -> EngineLink:
        links = self.engines.generation(work.generation).links
        if len(links) == 1:
            (only,) = links.values()
            return only  # without a prediction, which takes a pass over the queue
        # An image is not ahead of itself.
        self._board.release(slot)

        def seconds_and_length(link: EngineLink) -> tuple[float, int]:
            return self._completion_seconds(work, link), self._board.submitted_to(link.engine)

        return min(links.values(), key=seconds_and_length)

    def _queue_seconds(self, generation: Generation, link: EngineLink) -> float:
        """Return the seconds from now until the engine has run its queue and current batch."""
        queue = self._queue(generation, link, due=math.inf)
        seconds = queueing.queue_seconds(queue, link.cost_models, self.max_batch)
        elapsed, _ = self._current_batch_seconds(link)
        return max(0.0, seconds - elapsed)

    def _completion_seconds(self, work: WorkEstimate, link: EngineLink, images: int = 1) -> float:
        """Return the seconds until the last of ``images`` is complete; see `queueing`."""
        generation = self.engines.generation(work.generation)
        ahead = self._queue(generation, link, work.due) + [work] * (images - 1)
        elapsed, remaining = self._current_batch_seconds(link)
        return queueing.completion_seconds(
            work, ahead, elapsed, link.cost_models, self.max_batch, remaining
        )

    def _current_batch_seconds(self, link: EngineLink) -> tuple[float, float]:
        """Return for how long the current batch has run, and how much of its prediction is left."""
        heartbeat = self._board.engines[link.engine].heartbeat()
        if not heartbeat.batch_started:
            return 0.0, 0.0
        elapsed = min(time.monotonic() - heartbeat.batch_started, heartbeat.predicted_seconds)
        return elapsed, heartbeat.predicted_seconds - elapsed

    def _queue(self, generation: Generation, link: EngineLink, due: float) -> list[WorkEstimate]:
        """Return the work that an engine runs before a job that is due at ``due``.

        Images that are not submitted yet are divided evenly among the engines.
        """
        models = tuple(generation.models)
        ready = list(generation.links)
        part = slice(ready.index(link.engine), None, len(ready))
        unsubmitted = self._board.unsubmitted_work(models, due, generation.number)[part]
        return self._board.work_of(link.engine, models, due) + unsubmitted


class Lease(AbstractContextManager["Lease"]):
    """One image's hold on a slot, from `Router.lease`: write the image, then submit it.

    A sound or video may write and run several of its windows, one after the other, and an image may
    run twice.

    Attributes:
        submitted: whether the lease has given its slot away: to an engine, whose answer frees it,
            or by `release`.
    """

    def __init__(self, router: Router, work: WorkEstimate | None, generation: Generation) -> None:
        self._router = router
        self._generation = generation
        self._slots = router.engines.slots
        self._work = work
        self._slot = -1  # none, before the block is entered
        self._normalised = False
        self.submitted = False

    def __enter__(self) -> Self:
        """Take the slot. Raises `Overloaded`."""
        self._slot = self._router.take_slot(self._work, self._generation)
        self._router.engines.join(self._generation)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the slot back, unless an engine has it."""
        self.release()
        self._router.engines.leave(self._generation)

    def release(self) -> None:
        """Give a slot that was kept back before the block ends: no other input will run in it."""
        if not self.submitted:
            self._slots.free_after_lease(self._slot)
            self.submitted = True

    def write(self, pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> None:
        """Copy an image ``(C, H, W)`` into the slot: decoded, uint8; or normalised, float32."""
        self._normalised = pixels.dtype != np.uint8
        dtype = np.float32 if self._normalised else np.uint8
        np.copyto(self._generation.memory.view(self._slot, pixels.shape, dtype), pixels)

    def submit(
        self,
        model: str,
        choices: Sequence[Schedule],
        top_k: int,
        deadline: float | None = None,
        output_kind: OutputKind = "classes",
        request_id: str = "",
        keep_slot: bool = False,
        second: SecondPass | None = None,
        is_second: bool = False,
        label_set: str = "",
    ) -> asyncio.Future[Result]:
        """Submit the image, and return its future result. Cancelling the future cancels the job.

        The other arguments are those of `Job`.

        Args:
            keep_slot: whether the lease holds the slot beyond the answer, so that another input can
                be written and run, or the same again.

        Raises:
            EngineLost: no engine is ready. The future raises it if the engine ends before the image
                was run.
        """
        job = Job(
            id=self._router.next_job_id(),
            slot=self._slot,
            model=model,
            choices=tuple(choices),
            top_k=top_k,
            submitted=time.monotonic(),
            deadline=deadline,
            output_kind=output_kind,
            normalised=self._normalised,
            request_id=request_id,
            second=second,
            is_second=is_second,
            label_set=label_set,
        )
        future = self._router.submit(job, self._work, self._generation.number)
        if keep_slot:
            self._slots.keep(self._slot)
            self._work = None  # the next job counts when it is submitted
        else:
            self.submitted = True
        return future
