"""Dynamic batching: which jobs run next, and under which schedules. Pure: no torch, no clock.

The scheduler is work-conserving: it builds a batch when the device becomes free, from the jobs in
the queue. There is no batching window, since jobs accumulate by themselves while the device is
busy. A job that leaves its schedule to the engine gets it at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from operator import attrgetter
from typing import NamedTuple, Protocol

from server.engine.scheduling.adaptive_r import AdaptiveR
from server.engine.scheduling.options import ModelCosts, OptionsCache
from server.engine.scheduling.queue_forecast import CostModels, QueuedJob, QueueForecast
from server.ipc.messages import Job
from server.latency.cost import CostModel, ImageCost
from server.latency.queue_model import Bounds, ModelQueue
from tome_core.schedule import Schedule


class Policy(Protocol):
    """Limits the FLOPs of images; see `server.engine.scheduling.adaptive_r`."""

    def work_limit(
        self,
        queue: Sequence[QueuedJob],
        now: float,
        bounds: Bounds,
        cost_models: CostModels,
    ) -> float:
        """Return the share of the FLOPs at r=0 that an image may take.

        Args:
            queue: earliest due first. One job at least leaves its schedule to the engine.
            now: when the next batch begins.
        """


class ScheduledJob(NamedTuple):
    """A job, the schedule that it runs under, and what it adds to the cost of its batch."""

    job: Job
    schedule: Schedule
    image_cost: ImageCost


@dataclass(frozen=True)
class TakenJobs:
    """The jobs that one call of `Scheduler.take_next` takes off the queue.

    Attributes:
        batch: jobs to run together, all of one model.
        expired: jobs whose deadline has passed.
        refused: jobs that would miss their deadline under any schedules.
    """

    batch: tuple[ScheduledJob, ...] = ()
    expired: tuple[Job, ...] = ()
    refused: tuple[Job, ...] = ()


@dataclass
class Scheduler:
    """Earliest deadline first over all queued jobs.

    A job without a deadline is due at its arrival plus a target. As every job has an absolute due
    time, newer jobs cannot overtake it forever.

    Attributes:
        bounds: of one batch.
        target_seconds: target of a job without a deadline.
        model_costs: the costs of each model, by name.
        policy: limits the FLOPs of jobs that leave their schedule to the engine.
    """

    bounds: Bounds
    target_seconds: float
    model_costs: Mapping[str, ModelCosts]
    policy: Policy = field(default_factory=AdaptiveR)
    _queued: dict[int, QueuedJob] = field(default_factory=dict)
    _options: OptionsCache = field(default_factory=OptionsCache)

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, job: Job) -> None:
        """Add a job that has arrived to the queue."""
        costs = self.model_costs[job.model]
        leaves_schedule_open = len(job.choices) > 1
        if leaves_schedule_open or job.second is not None:
            options = self._options.get(job, costs, self.bounds.images)
        else:
            options = (costs.option(job.choices[0]),)
        if job.deadline is None:
            due = job.submitted + self.target_seconds
        else:
            due = job.deadline
        binding_due = math.inf
        if job.deadline is not None or leaves_schedule_open:
            binding_due = due
        self._queued[job.id] = QueuedJob(job, options, due, binding_due)

    def cancel(self, job_id: int) -> bool:
        """Remove a job from the queue. Returns False if it is not queued (any more)."""
        return self._queued.pop(job_id, None) is not None

    def take_next(self, now: float, start: float | None = None) -> TakenJobs:
        """Take the next batch, and all jobs that are too late, off the queue.

        Args:
            start: when the batch begins, if the device is busy until then; default ``now``.
        """
        start = now if start is None else start
        # The sort is stable: jobs that are due at the same time keep the order of their arrival.
        queue = sorted(self._queued.values(), key=attrgetter("due"))
        expired = _find_expired(queue, now)
        queue = self._remove(expired, queue)
        refused = self._find_refused(queue, start)
        queue = self._remove(refused, queue)
        batch = self._build_batch(queue, start)
        for scheduled in batch:
            del self._queued[scheduled.job.id]
        return TakenJobs(
            batch,
            expired=tuple(queued.job for queued in expired),
            refused=tuple(queued.job for queued in refused),
        )

    def _build_batch(
        self,
        queue: Sequence[QueuedJob],
        now: float,
    ) -> tuple[ScheduledJob, ...]:
        """Return the next batch: the first jobs of the first one's model that fit."""
        if not queue:
            return ()
        jobs = self._same_model(queue)
        work_limit = self._work_limit(queue, now)
        options = []
        for queued in jobs:
            option = queued.options[0]
            if len(queued.options) > 1:
                option = queued.option_within(work_limit)
            options.append(option)
        image_costs = [option.image_cost for option in options]
        due = [queued.binding_due for queued in jobs]
        cost_model = self._cost_model(jobs[0].job.model)
        model_queue = ModelQueue(image_costs, due, self.bounds, cost_model)
        model_queue.take_batch(now)
        return tuple(
            [
                ScheduledJob(queued.job, option.schedule, option.image_cost)
                for queued, option in zip(jobs[: model_queue.taken], options, strict=False)
            ]
        )

    def _same_model(self, queue: Sequence[QueuedJob]) -> list[QueuedJob]:
        """Return the first jobs of the first one's model, as many as a batch may have."""
        model = queue[0].job.model
        of_model = (queued for queued in queue if queued.job.model == model)
        return list(islice(of_model, self.bounds.images))

    def _work_limit(self, queue: Sequence[QueuedJob], now: float) -> float:
        """Return the limit of the policy; infinity if no job leaves its schedule to the engine."""
        for queued in queue:
            if len(queued.options) > 1:
                return self.policy.work_limit(queue, now, self.bounds, self._cost_model)
        return math.inf

    def _find_refused(
        self,
        queue: Sequence[QueuedJob],
        now: float,
    ) -> list[QueuedJob]:
        """Return the jobs that will miss their deadline even if all jobs run as fast as they may.

        Running them would be useless and would make others late: under overload few answers would
        be in time.
        """
        late = self._certain_to_be_late(queue, now)
        if len(late) < len(queue):
            return late
        # Nothing else is queued, so one job that could be in time on an undisturbed machine runs
        # all the same: only a batch that runs can correct a wrong estimate.
        for attempt in late:
            if self._seconds_alone(attempt) <= attempt.due - now:
                return [queued for queued in late if queued is not attempt]
        return late

    def _certain_to_be_late(
        self,
        queue: Sequence[QueuedJob],
        now: float,
    ) -> list[QueuedJob]:
        late = {
            position for position, queued in enumerate(queue) if queued.job.deadline is not None
        }
        if not late:
            return []
        without_margin = cache(lambda model: replace(self._cost_model(model), margin=0.0))
        forecast = QueueForecast(queue, now, self.bounds, without_margin)
        # The options that merge most are the fastest in full batches. For the few images of a short
        # queue, those that merge least may be faster.
        work_limits = [0.0]
        if len(queue) < self.bounds.images:
            work_limits.append(math.inf)
        for work_limit in work_limits:
            late.intersection_update(forecast.late_positions(work_limit))
            if not late:
                return []
        return [queue[position] for position in sorted(late)]

    def _seconds_alone(self, queued: QueuedJob) -> float:
        """Return the seconds of the job alone on an undisturbed machine, by its fastest option."""
        undisturbed = self._cost_model(queued.job.model).undisturbed()
        return min(
            undisturbed.uniform_batch_seconds(option.image_cost, 1) for option in queued.options
        )

    def _remove(
        self,
        removed: list[QueuedJob],
        queue: list[QueuedJob],
    ) -> list[QueuedJob]:
        """Drop the ``removed`` jobs, and return the rest of ``queue``."""
        if not removed:
            return queue
        for queued in removed:
            del self._queued[queued.job.id]
        return [queued for queued in queue if queued.job.id in self._queued]

    def _cost_model(self, model: str) -> CostModel:
        return self.model_costs[model].cost_model


def _find_expired(queue: Sequence[QueuedJob], now: float) -> list[QueuedJob]:
    """Return the jobs whose deadline has passed."""
    expired = []
    for queued in queue:
        if queued.due > now:
            break
        if queued.job.deadline is not None:
            expired.append(queued)
    return expired
