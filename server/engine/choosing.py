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

_EFFICIENT = 5  # times its overhead that a batch lasts before a deadline can end it


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
    than a full batch, fewer images run together. But not so few that a batch is mostly overhead: under overload that
    would cost more deadlines than it saves.
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
            or (self.start + seconds > self._first_due and self.seconds > _EFFICIENT * estimate.overhead)
        ):
            return False
        self.images, self.work, self.seconds = self.images + 1, self.work + option.work, seconds
        return True


Estimates = Callable[[str], Estimate]


def forecast(
    queue: Sequence[Waiting], limits: Sequence[float], now: float, bounds: Bounds, of: Estimates, reserve: float = 0.0
) -> list[float]:
    """When each job of ``queue`` (as due, earliest first) will be done under its limit, if nothing else arrives.

    Args:
        reserve: share of all batches but the next that is added to them, for what may arrive and be due earlier.
    """
    done: list[float] = []
    cutter, stretch = Cutter(bounds, now), 1.0
    for waiting, limit in zip(queue, limits, strict=True):
        option, estimate = waiting.under(limit), of(waiting.job.model)
        if not cutter.takes(waiting, option, estimate):
            end = cutter.start + cutter.seconds * stretch
            done += [end] * cutter.images
            cutter, stretch = Cutter(bounds, end), 1.0 + reserve
            cutter.takes(waiting, option, estimate)  # the first one always joins
    return done + [cutter.start + cutter.seconds * stretch] * cutter.images


def limits_of(queue: Sequence[Waiting]) -> list[float]:
    """All limits between which the jobs of ``queue`` make a difference, mildest first."""
    return sorted({option.work for waiting in queue if waiting.flexible for option in waiting.options}, reverse=True)


def assign(queue: Sequence[Waiting], now: float, bounds: Bounds, of: Estimates, reserve: float = 0.0) -> list[float]:
    """The mildest limit for each job with which it and all that run after it are in time.

    What runs before a job decides whether it is in time, so a limit holds for all jobs up to the last that needs it.
    """
    candidates = limits_of(queue) or [1.0]
    limits = [candidates[0]] * len(queue)
    done = forecast(queue, limits, now, bounds, of, reserve)
    late = [index for index, waiting in enumerate(queue) if waiting.binding and done[index] > waiting.due]
    if not late or len(candidates) == 1:
        return limits
    best = forecast(queue, [candidates[-1]] * len(queue), now, bounds, of, reserve)
    # One that misses its deadline anyway needs no help; one that misses a target needs all there is.
    late = [index for index in late if best[index] <= queue[index].due or queue[index].job.deadline is None]
    for limit in candidates[1:]:
        if not late:
            break
        edge = late[-1] + 1
        limits[:edge] = [limit] * edge
        done = forecast(queue, limits, now, bounds, of, reserve)
        late = [index for index in late if done[index] > queue[index].due]
    return limits


@dataclass
class Steady:
    """`assign`, with a reserve, and a limit that was needed is given up slowly, so that a steady load has a steady r.

    Attributes:
        reserve: see `forecast`. Without one the smallest r lets the queue grow until it just fits, and the next burst
            finds it full: accuracy would be kept at the cost of answers. Under a steady load it costs nothing, since
            there the rate of arrivals decides what the mean r must be, whatever the length of the queue.
        relax: seconds in which a limit may come back from nothing to all of the work at r=0.
    """

    reserve: float = 1.0
    relax: float = 2.5
    _held: float = 1.0
    _since: float = 0.0

    def limits(self, queue: Sequence[Waiting], now: float, bounds: Bounds, of: Estimates) -> Sequence[float]:
        """Of the jobs of ``queue``, earliest due first."""
        needed = assign(queue, now, bounds, of, self.reserve)
        held = min(1.0, self._held + (now - self._since) / self.relax)
        self._held, self._since = min([held, *needed[:1]]), now
        return [min(limit, self._held) for limit in needed]
