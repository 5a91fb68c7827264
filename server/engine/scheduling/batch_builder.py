"""Cuts a queue into batches, as the engine runs them. Pure: no torch, no clock; time comes in as a number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import attrgetter, gt

from server.ipc.messages import Job
from server.latency.cost import Estimate, Load
from tome_core.schedule import Schedule

_EFFICIENT = 5  # times its overhead that a batch lasts before a deadline can end it
_ROUNDING = 1e-9  # in images at r=0

Estimates = Callable[[str], Estimate]


@dataclass(frozen=True, eq=False)
class Option:
    """One schedule that a job may get. ``work``: FLOPs of an image, as a share of those at r=0."""

    schedule: Schedule
    work: float
    load: Load


@dataclass(slots=True, eq=False)
class QueuedJob:
    """One job in the queue.

    Attributes:
        options: mildest first, each faster in full batches than those before; one where the request
            named a schedule.
        due: its deadline, or when it ought to be done.
        binding: it has a deadline, or is to be served by its target because it leaves the choice to
            us.
    """

    job: Job
    options: tuple[Option, ...]
    due: float
    binding: bool

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
class BatchBuilder:
    """Fills one batch, job by job, in the order in which they are due. The scheduler and its forecast share it.

    A job that would make the first one late does not join, unless the first is late anyway: with a
    deadline shorter
    than a full batch, fewer images run together. But not so few that a batch is mostly overhead:
    under overload that would cost more deadlines than it saves.
    """

    bounds: Bounds
    start: float
    images: int = 0
    work: float = 0.0
    seconds: float = 0.0
    _first_due: float = float("inf")
    _model: str = ""
    _load: Load | None = None  # of all images so far, where they are alike
    _one: float = 0.0  # seconds of each of these
    _bucket: int = 0  # the size of the graph that runs them
    _blocks: int = 0  # that merge
    # Images of the first one's model; others are in a forecast only, for their share of another
    # batch.
    _own: int = 0
    _others: float = 0.0  # seconds of these
    _each: float = 0.0  # seconds of its own images, one by one
    _whole: float = 0.0  # seconds of the batch of these, without a margin

    def takes(self, waiting: QueuedJob, option: Option, estimate: Estimate) -> bool:
        """Whether the job joins the batch; counts it if so."""
        if self.images and (
            self.images == self.bounds.images or self.work + option.work > self.bounds.work
        ):
            return False
        others = self._others
        load = self._load
        each = self._each
        whole = self._whole
        own = not self.images or waiting.job.model == self._model
        if own:
            load, each, whole = self._with(option.load, estimate)
        else:
            others += estimate.image(option.load)
        seconds = (whole + others) * (1 + estimate.margin)
        if not self.images:
            self._model = waiting.job.model
            if waiting.binding and self.start + seconds <= waiting.due:
                self._first_due = waiting.due
        elif self.start + seconds > self._first_due and self._is_enough(
            whole, option.load, estimate
        ):
            return False
        self.images += 1
        self.work += option.work
        self.seconds = seconds
        self._own += own
        self._others = others
        self._load = load
        self._each = each
        self._whole = whole
        return True

    def fills(self, option: Option, most: int) -> int:
        """How many of ``most`` more jobs, like the last one, join because the batch is filled up to its bucket anyway.

        Counts them. None do where that cannot be said at once.
        """
        count = min(most, self.bounds.images - self.images, self._bucket - self._own)
        alike = self._own == self.images and option.load == self._load
        full = self.work + count * option.work > self.bounds.work
        if count <= 0 or not alike or full or self.start + self.seconds > self._first_due:
            return 0
        self.images += count
        self.work += count * option.work
        self._own += count
        self._each += count * self._one
        return count

    def _is_enough(self, whole: float, load: Load, estimate: Estimate) -> bool:
        """Whether a deadline may end the batch: it is no mere overhead, or one more image costs what a batch costs."""
        overhead = self._whole - self._each
        return self.seconds > _EFFICIENT * overhead or whole - self._whole > estimate.alike(load, 1)

    def _with(self, load: Load, estimate: Estimate) -> tuple[Load | None, float, float]:
        """What `_load`, `_each` and `_whole` are with one more image of the same model."""
        images = self._own + 1
        if images == 1:
            self._one = estimate.image(load)
            self._blocks = load.blocks
        if images == 1 or load == self._load:
            each = self._each + self._one
            if images <= self._bucket:  # it is filled up to that size anyway
                return load, each, self._whole
            if images > 1 and not estimate.recorded.buckets:
                return load, each, self._whole + self._one
            self._bucket = estimate.recorded.bucket(load, images)
            whole = (
                estimate.alike(load, images)
                if self._bucket
                else estimate.unlike(images, load.blocks, each)
            )
            return load, each, whole
        before = self._own * estimate.image(self._load, mixed=True) if self._load else self._each
        each = before + estimate.image(load, mixed=True)
        self._blocks = max(self._blocks, load.blocks)
        return None, each, estimate.unlike(images, self._blocks, each)


# Jobs next to each other that get the same option: those before this position that are in no part
# before.
Part = tuple[int, Option]


def next_batch(
    queue: Sequence[QueuedJob], limits: Sequence[float], now: float, bounds: Bounds, of: Estimates
) -> list[Option]:
    """What the first jobs of ``queue``, all of one model, get that are the next batch, each under its limit."""
    options = [waiting.under(limit) for waiting, limit in zip(queue, limits, strict=True)]
    if queue[0].binding:
        return options[: QueueForecast(queue, now, bounds, of).first(in_stretches(limits))]
    # What the batch takes does not matter, if no deadline can end it.
    works = list(accumulate([option.work for option in options[: bounds.images]]))
    return options[: max(bisect_right(works, bounds.work), 1)]


# Limits of all jobs of a queue: the first of these holds up to its position, the next one from
# there on.
Limits = Sequence[tuple[int, float]]


def in_stretches(limits: Sequence[float]) -> Limits:
    """One limit for each job as `Limits`."""
    found = []
    stop = 0
    for limit, same in groupby(limits):
        stop += len(list(same))
        found.append((stop, limit))
    return found


class QueueForecast:
    """When the jobs of a queue will be done if nothing else arrives, for as many limits as one asks for.

    A queue is full of jobs that are alike, and most batches end because they are full. So
    neighbours are counted together, and only where a deadline may end a batch is it filled job by
    job.

    Args:
        queue: as due, earliest first.
        now: when the first batch begins.
        of: the estimate of a model.
        reserve: share of all batches but the next that is added to them, for what may arrive and be
            due earlier.
    """

    def __init__(
        self,
        queue: Sequence[QueuedJob],
        now: float,
        bounds: Bounds,
        of: Estimates,
        reserve: float = 0.0,
    ) -> None:
        self._queue = queue
        self._now = now
        self._bounds = bounds
        self._of = of
        self._reserve = reserve
        self._due = [waiting.due for waiting in queue]
        self._alike: list[tuple[int, QueuedJob]] = []
        stop = 0
        for _, same in groupby(queue, key=attrgetter("options")):
            first, *others = same
            stop += 1 + len(others)
            self._alike.append((stop, first))
        self._models = {waiting.job.model for _, waiting in self._alike}
        self._mixed: dict[Option, float] = {}  # seconds of an image in a mixed batch

    def done(self, limits: Limits) -> list[float]:
        """When each job will be done."""
        found: list[float] = []
        parts = self._parts(limits)
        at = 0
        start = self._now
        stretch = 1.0
        while len(found) < len(self._queue):
            stop, seconds = self._cut(parts, at, len(found), start)
            start += seconds * stretch
            stretch = 1.0 + self._reserve
            found += [start] * (stop - len(found))
            while at < len(parts) and parts[at][0] <= stop:
                at += 1
        return found

    def late(self, done: Sequence[float]) -> list[int]:
        """The positions of jobs that are done later than they are due."""
        if not any(map(gt, done, self._due)):
            return []
        return [position for position, late in enumerate(map(gt, done, self._due)) if late]

    def first(self, limits: Limits) -> int:
        """How many jobs the next batch has."""
        return self._cut(self._parts(limits), 0, 0, self._now)[0]

    def _parts(self, limits: Limits) -> list[Part]:
        if len(limits) == 1:
            return [(stop, waiting.under(limits[0][1])) for stop, waiting in self._alike]
        found = []
        at = 0
        for stop, waiting in self._alike:
            while limits[at][0] < stop:
                found.append((limits[at][0], waiting.under(limits[at][1])))
                at += 1
            found.append((stop, waiting.under(limits[at][1])))
        return found

    def _cut(self, parts: Sequence[Part], at: int, begin: int, start: float) -> tuple[int, float]:
        """Where the batch ends that begins with the job at ``begin``, in the part ``at``, and how long it takes."""
        return self._at_once(parts, at, begin, start) or self._one_by_one(parts, at, begin, start)

    def _at_once(
        self, parts: Sequence[Part], at: int, begin: int, start: float
    ) -> tuple[int, float] | None:
        """`_cut` where no deadline ends the batch, and all is of one model; None elsewhere."""
        if len(self._models) > 1:
            return None
        estimate = self._of(self._queue[begin].job.model)
        first = parts[at][1].load
        position = begin
        alike = begin  # where those end that are like the first
        work = each = 0.0
        blocks = 0
        full = min(begin + self._bounds.images, len(self._queue))
        while position < full:
            end, option = parts[at]
            stop = min(end, full)
            if work + (stop - position) * option.work > self._bounds.work:
                room = int((self._bounds.work - work + _ROUNDING) / option.work)
                full = stop = max(position + room, begin + 1)
            if alike == position and option.load == first:
                alike = stop
            work += (stop - position) * option.work
            if option not in self._mixed:
                self._mixed[option] = estimate.image(option.load, mixed=True)
            each += (stop - position) * self._mixed[option]
            if stop > position and option.load.blocks > blocks:
                blocks = option.load.blocks
            position = stop
            at = at + 1
        whole = longest = estimate.alike(first, alike - begin)
        if alike < position:
            whole = estimate.unlike(position - begin, blocks, each)
            longest = max(longest, whole)
        due = self._due[begin]
        slower = 1 + estimate.margin
        # A deadline ends the batch only where the first is in time alone.
        if (
            self._queue[begin].binding
            and start + longest * slower > due >= start + estimate.alike(first, 1) * slower
        ):
            return None
        return position, whole * slower

    def _one_by_one(
        self, parts: Sequence[Part], at: int, begin: int, start: float
    ) -> tuple[int, float]:
        cutter = BatchBuilder(self._bounds, start)
        position = begin
        for stop, option in parts[at:]:
            estimate = self._of(self._queue[position].job.model)
            while position < stop:
                if not cutter.takes(self._queue[position], option, estimate):
                    return position, cutter.seconds
                position += 1
                position += cutter.fills(option, stop - position)
        return position, cutter.seconds
