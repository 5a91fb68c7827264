"""Which r each waiting job gets: the smallest with which all meet their deadlines. Pure: time comes in as a number.

A job may leave the choice to the engine, from some schedules. A limit is the share of the FLOPs at r=0 that an image
may have; under a limit, a job gets the first of its schedules that keeps it, or its last. The jobs of the queue, in
the order in which they will run, are cut into batches as the scheduler cuts them, and every one that has a deadline
must be done by then (the demand-bound test of earliest-deadline-first scheduling, over batches).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.costs import Estimate, Load
from server.messages import Job
from tome_core.schedule import Schedule


@dataclass(frozen=True)
class Option:
    """One schedule that a job may get. ``work``: FLOPs of an image, as a share of those at r=0."""

    schedule: Schedule
    work: float
    load: Load


@dataclass(frozen=True, eq=False)
class Waiting:
    """One job in the queue.

    Attributes:
        options: mildest first; one where the request named its schedule.
        due: its deadline, or when it ought to be done.
        binding: it has a deadline, or is to be served by its target because it leaves the choice to us.
    """

    job: Job
    options: tuple[Option, ...]
    due: float
    binding: bool

    @property
    def flexible(self) -> bool:
        """Whether there is anything to choose."""
        return len(self.options) > 1

    def under(self, limit: float) -> Option:
        """The mildest option that keeps ``limit``; the last where none does."""
        for option in self.options:
            if option.work <= limit:
                return option
        return self.options[-1]


@dataclass(frozen=True)
class Bounds:
    """What one batch may have: images, work in images at r=0."""

    images: int
    work: float = float("inf")


@dataclass
class Cutter:
    """Fills one batch, job by job, in the order in which they are due. The scheduler and its forecast share it.

    A job that would make the first one late does not join, unless the first is late anyway: with a deadline shorter
    than a full batch, fewer images run together.
    """

    bounds: Bounds
    start: float
    images: int = 0
    work: float = 0.0
    seconds: float = 0.0
    _first_due: float = float("inf")

    def takes(self, waiting: Waiting, option: Option, estimate: Estimate) -> bool:
        """Whether the job joins the batch; counts it if so."""
        seconds = self.seconds + estimate.image(option.load) * (1 + estimate.margin)
        if not self.images:
            seconds += estimate.overhead * (1 + estimate.margin)
            if waiting.binding and self.start + seconds <= waiting.due:
                self._first_due = waiting.due
        elif (
            self.images == self.bounds.images
            or self.work + option.work > self.bounds.work
            or self.start + seconds > self._first_due
        ):
            return False
        self.images, self.work, self.seconds = self.images + 1, self.work + option.work, seconds
        return True


Estimates = Callable[[str], Estimate]


def forecast(
    queue: Sequence[Waiting], limits: Sequence[float], now: float, bounds: Bounds, of: Estimates
) -> list[float]:
    """When each job of ``queue`` (as due, earliest first) will be done under its limit, if nothing else arrives."""
    done: list[float] = []
    clock = now
    while len(done) < len(queue):
        cutter, begin = Cutter(bounds, clock), len(done)
        for waiting, limit in zip(queue[begin:], limits[begin:], strict=True):
            if not cutter.takes(waiting, waiting.under(limit), of(waiting.job.model)):
                break
        clock += cutter.seconds
        done += [clock] * cutter.images
    return done


def limits_of(queue: Sequence[Waiting]) -> list[float]:
    """All limits between which the jobs of ``queue`` make a difference, mildest first."""
    return sorted({option.work for waiting in queue if waiting.flexible for option in waiting.options}, reverse=True)


def assign(queue: Sequence[Waiting], now: float, bounds: Bounds, of: Estimates) -> list[float]:
    """The mildest limit for each job with which it and all that run after it are in time.

    A job is late for those behind it too, so a limit holds for all jobs up to the last one that needs it. Jobs that
    would be late under the strongest limit count no more: nothing that is done for them helps.
    """
    candidates = limits_of(queue)
    if not candidates:
        return [1.0] * len(queue)
    strongest = candidates[-1]
    limits = [strongest] * len(queue)
    possible = [
        waiting.binding and done <= waiting.due
        for waiting, done in zip(queue, forecast(queue, limits, now, bounds, of), strict=True)
    ]
    edge = len(queue)
    for limit in candidates[:-1]:
        limits[:edge] = [limit] * edge
        done = forecast(queue, limits, now, bounds, of)
        late = (index for index in reversed(range(edge)) if possible[index] and done[index] > queue[index].due)
        edge = next(late, -1) + 1
        if not edge:
            return limits
    limits[:edge] = [strongest] * edge
    return limits


@dataclass
class Steady:
    """`assign`, but a limit that was needed is given up slowly, so that a steady load has a steady r.

    Attributes:
        relax: seconds in which the limit may come back by the whole of the work at r=0.
    """

    relax: float = 5.0
    _held: float = 1.0
    _since: float = 0.0

    def limits(self, queue: Sequence[Waiting], now: float, bounds: Bounds, of: Estimates) -> Sequence[float]:
        """Of the jobs of ``queue``, earliest due first."""
        needed = assign(queue, now, bounds, of)
        held = min(1.0, self._held + (now - self._since) / self.relax) if self.relax else 1.0
        self._held, self._since = min([held, *needed[:1]]), now
        return [min(limit, self._held) for limit in needed]
