"""Which jobs run next. Pure policy: no torch, no clock, no queue between threads; time comes in as a number.

Work-conserving: a batch is cut when the device is free, from whatever has arrived. There is no window to wait for
more, since a busy device fills the next batch by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from server.messages import Job


@dataclass(frozen=True)
class Step:
    """What to do now: jobs to run together (all of one model), and jobs whose deadline has passed."""

    batch: tuple[Job, ...] = ()
    expired: tuple[Job, ...] = ()


@dataclass
class Scheduler:
    """Earliest deadline first over all waiting jobs; a job without a deadline gets its arrival plus a target.

    The deadline of every job is absolute, so newer ones cannot overtake it for ever.

    A batch is filled across schedules, up to a number of images, which bounds memory, and up to an amount of work,
    which bounds how long the next batch has to wait.

    Attributes:
        max_batch: most images in one batch.
        target_seconds: default target of a job without a deadline.
        max_work: most work in one batch, unless its first job alone is more.
        work: of one job, in the unit of ``max_work``.
    """

    max_batch: int
    target_seconds: float
    max_work: float = float("inf")
    work: Callable[[Job], float] = field(default=lambda job: 1.0)
    _waiting: dict[int, Job] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: Job) -> None:
        """A job arrived."""
        self._waiting[job.id] = job

    def cancel(self, job_id: int) -> bool:
        """Forget a job; False if it is not waiting here (any more)."""
        return self._waiting.pop(job_id, None) is not None

    def step(self, now: float) -> Step:
        """Take the next batch, and all jobs that are too late, off the queue."""
        expired = tuple(job for job in self._waiting.values() if job.deadline is not None and job.deadline <= now)
        for job in expired:
            del self._waiting[job.id]
        urgent = sorted(self._waiting.values(), key=self._due)
        batch = self._fill(job for job in urgent if job.model == urgent[0].model)
        for job in batch:
            del self._waiting[job.id]
        return Step(batch, expired)

    def _fill(self, jobs: Iterable[Job]) -> tuple[Job, ...]:
        """As many of ``jobs`` as fit, in order; later ones that still fit do not overtake the first that does not."""
        batch: list[Job] = []
        work = 0.0
        for job in jobs:
            work += self.work(job)
            if len(batch) == self.max_batch or (batch and work > self.max_work):
                break
            batch.append(job)
        return tuple(batch)

    def _due(self, job: Job) -> tuple[float, int]:
        due = job.deadline if job.deadline is not None else job.submitted + self.target_seconds
        return due, job.id
