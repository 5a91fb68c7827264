"""Which jobs run next, and under which schedules. Pure policy: no torch, no clock; time comes in as a number.

Work-conserving: a batch is cut when the device is free, from whatever has arrived. There is no window to wait for
more, since a busy device fills the next batch by itself. What a job may leave open, its schedule, is decided then too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from server.costs import Estimate, Load
from server.engine.choosing import Bounds, Cutter, Option, Steady, Waiting, forecast, limits_of
from server.messages import Job
from tome_core.schedule import Schedule


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
        self, queue: Sequence[Waiting], now: float, bounds: Bounds, of: Callable[[str], Estimate]
    ) -> Sequence[float]:
        """Of the jobs of ``queue``, earliest due first."""


@dataclass(frozen=True)
class Placed:
    """A job, and the schedule that it runs under."""

    job: Job
    schedule: Schedule


@dataclass(frozen=True)
class Step:
    """What to do now.

    Attributes:
        batch: jobs to run together, all of one model.
        expired: jobs whose deadline has passed.
        refused: jobs whose deadline will have passed before they are done, whatever is done.
    """

    batch: tuple[Placed, ...] = ()
    expired: tuple[Job, ...] = ()
    refused: tuple[Job, ...] = ()


@dataclass
class Scheduler:
    """Earliest deadline first over all waiting jobs; a job without a deadline gets its arrival plus a target.

    The deadline of every job is absolute, so newer ones cannot overtake it for ever.

    A batch is filled across schedules, up to a number of images, which bounds memory, up to an amount of work, which
    bounds how long the next batch has to wait, and as long as its first job is in time.

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
    _waiting: dict[int, Waiting] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: Job) -> None:
        """A job arrived."""
        pricing = self.pricing(job.model)
        options = (Option(one, pricing.relative(one), pricing.load(one)) for one in job.choices)
        due = job.submitted + self.target_seconds if job.deadline is None else job.deadline
        binding = job.deadline is not None or len(job.choices) > 1
        mildest_first = tuple(sorted(options, key=lambda option: -option.work))
        self._waiting[job.id] = Waiting(job, mildest_first, due, binding)

    def cancel(self, job_id: int) -> bool:
        """Forget a job; False if it is not waiting here (any more)."""
        return self._waiting.pop(job_id, None) is not None

    def step(self, now: float) -> Step:
        """Take the next batch, and all jobs that are too late, off the queue."""
        expired = [one for one in self._waiting.values() if one.job.deadline is not None and one.job.deadline <= now]
        self._drop(expired)
        queue = sorted(self._waiting.values(), key=lambda waiting: (waiting.due, waiting.job.id))
        refused = self._hopeless(queue, now)
        self._drop(refused)
        queue = [waiting for waiting in queue if waiting.job.id in self._waiting]
        batch = self._cut(queue, now)
        for placed in batch:
            del self._waiting[placed.job.id]
        return Step(batch, tuple(one.job for one in expired), tuple(one.job for one in refused))

    def _cut(self, queue: Sequence[Waiting], now: float) -> tuple[Placed, ...]:
        """The next batch: those of ``queue``, in order, that are of its first one's model and fit."""
        batch: list[Placed] = []
        cutter = Cutter(self.bounds, now)
        limits = self.policy.limits(queue, now, self.bounds, self._estimate)
        for waiting, limit in zip(queue, limits, strict=True):
            if waiting.job.model != queue[0].job.model:
                continue
            option = waiting.under(limit)
            if not cutter.takes(waiting, option, self._estimate(waiting.job.model)):
                break  # later ones that still fit do not overtake it
            batch.append(Placed(waiting.job, option.schedule))
        return tuple(batch)

    def _hopeless(self, queue: Sequence[Waiting], now: float) -> list[Waiting]:
        """Jobs that will miss their deadline even if all are run as fast as they may be.

        To run them would be for nothing, and would make others late: under overload few answers would be in time.
        """
        if all(waiting.job.deadline is None for waiting in queue):
            return []
        exact = {model: replace(self._estimate(model), margin=0.0) for model in {one.job.model for one in queue}}
        strongest = [min(limits_of(queue), default=1.0)] * len(queue)
        done = forecast(queue, strongest, now, self.bounds, exact.__getitem__)
        late = [
            waiting
            for waiting, end in zip(queue, done, strict=True)
            if waiting.job.deadline is not None and end > waiting.job.deadline
        ]
        # If that leaves nothing, one of them may try: a batch that runs is what corrects an estimate that is wrong.
        trying = next((one for one in late if self._alone(one) <= one.due - now), None)
        return [one for one in late if one is not trying or len(late) < len(queue)]

    def _alone(self, waiting: Waiting) -> float:
        """Seconds of the job alone on a quiet machine, as fast as it may run."""
        quiet = self._estimate(waiting.job.model).quiet()
        return quiet.overhead + quiet.image(waiting.options[-1].load)

    def _drop(self, some: Sequence[Waiting]) -> None:
        for waiting in some:
            del self._waiting[waiting.job.id]

    def _estimate(self, model: str) -> Estimate:
        return self.pricing(model).estimate
