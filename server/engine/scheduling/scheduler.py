"""Which jobs run next, and under which schedules. Pure policy: no torch, no clock; time comes in as a number.

Work-conserving: a batch is cut when the device is free, from whatever has arrived. There is no
window to wait for more, since a busy device fills the next batch by itself. What a job may leave
open, its schedule, is decided then too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from operator import attrgetter
from typing import NamedTuple, Protocol

from server.engine.scheduling.adaptive_r import Steady, faster
from server.engine.scheduling.batch_builder import (
    Bounds,
    Option,
    QueuedJob,
    QueueForecast,
    next_batch,
)
from server.ipc.messages import Job
from server.latency.cost import Estimate, Load
from tome_core.schedule import Schedule

_MOST_KNOWN = 1024  # choices; clients make some up


class Pricing(Protocol):
    """What the scheduler asks of a model."""

    @property
    def estimate(self) -> Estimate:
        """How long batches take now."""

    def load(self, schedule: Schedule) -> Load:
        """What one image under ``schedule`` adds to its batch."""

    def relative(self, schedule: Schedule) -> float:
        """FLOPs of one image as a share of those at r=0."""


class Policy(Protocol):
    """Sets the limit of each job; see `choosing`."""

    def limits(
        self, queue: Sequence[QueuedJob], now: float, bounds: Bounds, of: Callable[[str], Estimate]
    ) -> Sequence[float]:
        """Of the jobs of ``queue``, earliest due first."""


class ScheduledJob(NamedTuple):
    """A job, and the schedule that it runs under."""

    job: Job
    schedule: Schedule


class Allowed(NamedTuple):
    """What jobs may get that leave these ``choices``.

    Attributes:
        every: one for each choice.
        options: those of them that pay by ``estimate`` in batches of ``images``.
    """

    choices: tuple[Schedule, ...]
    every: tuple[Option, ...]
    options: tuple[Option, ...]
    estimate: Estimate
    images: int


@dataclass(frozen=True)
class Step:
    """What to do now.

    Attributes:
        batch: jobs to run together, all of one model.
        expired: jobs whose deadline has passed.
        refused: jobs whose deadline will have passed before they are done, whatever is done.
    """

    batch: tuple[ScheduledJob, ...] = ()
    expired: tuple[Job, ...] = ()
    refused: tuple[Job, ...] = ()


@dataclass
class Scheduler:
    """Earliest deadline first over all waiting jobs; a job without a deadline gets its arrival plus a target.

    The deadline of every job is absolute, so newer ones cannot overtake it for ever.

    A batch is filled across schedules, up to a number of images, which bounds memory, up to an
    amount of work, which bounds how long the next batch has to wait, and as long as its first job
    is in time.

    Attributes:
        bounds: of one batch; its first job alone may be more work.
        target_seconds: default target of a job without a deadline.
        pricing: of a model, by name.
        policy: chooses for jobs that leave it open.
    """

    bounds: Bounds
    target_seconds: float
    pricing: Callable[[str], Pricing]
    policy: Policy = field(default_factory=Steady)
    _waiting: dict[int, QueuedJob] = field(default_factory=dict)
    _allowed: dict[tuple[str, int], Allowed] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: Job) -> None:
        """A job arrived."""
        due = job.submitted + self.target_seconds if job.deadline is None else job.deadline
        binding = job.deadline is not None or len(job.choices) > 1
        self._waiting[job.id] = QueuedJob(job, self._options(job), due, binding)

    def cancel(self, job_id: int) -> bool:
        """Forget a job; False if it is not waiting here (any more)."""
        return self._waiting.pop(job_id, None) is not None

    def step(self, now: float, start: float | None = None) -> Step:
        """Take the next batch, and all jobs that are too late, off the queue.

        Args:
            start: when the batch will begin, if the device is busy until then; default ``now``.
        """
        start = now if start is None else start
        # Those that are due at once remain in the order in which they came.
        queue = sorted(self._waiting.values(), key=attrgetter("due"))
        expired = self._expired(queue, now)
        if expired:
            queue = self._without(expired, queue)
        refused = self._hopeless(queue, start)
        if refused:
            queue = self._without(refused, queue)
        batch = self._cut(queue, start)
        for placed in batch:
            del self._waiting[placed.job.id]
        return Step(batch, tuple(one.job for one in expired), tuple(one.job for one in refused))

    def _cut(self, queue: Sequence[QueuedJob], now: float) -> tuple[ScheduledJob, ...]:
        """The next batch: those of ``queue``, in order, that are of its first one's model and fit.

        Later ones that still fit do not overtake the first that does not.
        """
        limits = self.policy.limits(queue, now, self.bounds, self._estimate)
        if not queue:
            return ()
        model = queue[0].job.model
        own = (
            (one, limit) for one, limit in zip(queue, limits, strict=True) if one.job.model == model
        )
        first, limits = zip(*islice(own, self.bounds.images), strict=True)
        options = next_batch(first, limits, now, self.bounds, self._estimate)
        return tuple(
            [
                ScheduledJob(one.job, option.schedule)
                for one, option in zip(first, options, strict=False)
            ]
        )

    def _expired(self, queue: Sequence[QueuedJob], now: float) -> list[QueuedJob]:
        """Jobs whose deadline has passed."""
        found = []
        for one in queue:
            if one.due > now:
                break
            if one.job.deadline is not None:
                found.append(one)
        return found

    def _hopeless(self, queue: Sequence[QueuedJob], now: float) -> list[QueuedJob]:
        """Jobs that will miss their deadline even if all are run as fast as they may be.

        To run them would be for nothing, and would make others late: under overload few answers
        would be in time.
        """
        late = [position for position, one in enumerate(queue) if one.job.deadline is not None]
        if not late:
            return []
        exact = cache(lambda model: replace(self._estimate(model), margin=0.0))
        future = QueueForecast(queue, now, self.bounds, exact)
        # The strongest schedules are the fastest in full batches, but perhaps not for the few
        # images of a short queue.
        for limit in (0.0, math.inf) if len(queue) < self.bounds.images else (0.0,):
            behind = set(future.late(future.done([(len(queue), limit)])))
            late = [position for position in late if position in behind] if behind else []
            if not late:
                return []
        # If that leaves nothing, one of them may try: a batch that runs is what corrects an
        # estimate that is wrong.
        refused = [queue[position] for position in late]
        trying = next((one for one in refused if self._alone(one) <= one.due - now), None)
        return [one for one in refused if one is not trying or len(refused) < len(queue)]

    def _alone(self, waiting: QueuedJob) -> float:
        """Seconds of the job alone on a quiet machine, as fast as it may run."""
        quiet = self._estimate(waiting.job.model).quiet()
        return min(quiet.alike(option.load, 1) for option in waiting.options)

    def _without(self, some: Sequence[QueuedJob], queue: Sequence[QueuedJob]) -> list[QueuedJob]:
        """Forget ``some`` of ``queue``; the others."""
        for waiting in some:
            del self._waiting[waiting.job.id]
        return [waiting for waiting in queue if waiting.job.id in self._waiting]

    def _options(self, job: Job) -> tuple[Option, ...]:
        """What ``job`` may get. The choices of most jobs are the very same tuple, which need not be looked at again."""
        pricing = self.pricing(job.model)
        images = self.bounds.images
        key = job.model, id(job.choices)
        known = self._allowed.get(key)
        if (
            known
            and known.choices is job.choices
            and known.estimate is pricing.estimate
            and known.images == images
        ):
            return known.options
        if known and known.choices is job.choices:
            every = known.every
        else:
            every = tuple(
                Option(one, pricing.relative(one), pricing.load(one)) for one in job.choices
            )
        if len(self._allowed) >= _MOST_KNOWN:
            self._allowed.clear()
        options = faster(every, pricing.estimate, images)
        self._allowed[key] = Allowed(job.choices, every, options, pricing.estimate, images)
        return options

    def _estimate(self, model: str) -> Estimate:
        return self.pricing(model).estimate
