"""Which r each waiting job gets: the smallest with which all meet their deadlines. Pure: time comes in as a number.

A job may leave the choice to the engine, from some schedules. A limit is the share of the FLOPs at
r=0 that an image may have; under a limit, a job gets the first of its schedules that keeps it, or
its last. The jobs of the queue, in the order in which they will run, are cut into batches as the
scheduler cuts them, and every one that has a deadline must be done by then (the demand-bound test
of earliest-deadline-first scheduling, over batches).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from server.engine.scheduling.batch_builder import (
    Bounds,
    Estimates,
    Option,
    QueuedJob,
    QueueForecast,
)
from server.latency.cost import Estimate


def faster(options: Iterable[Option], estimate: Estimate, images: int) -> tuple[Option, ...]:
    """``options``, mildest first, less those by which a batch of ``images`` is no faster than by a milder one.

    Merging costs time too, so fewer FLOPs do not have to be less time; and what is no faster is
    worse for nothing.
    """
    kept: list[Option] = []
    least = math.inf
    for option in sorted(options, key=lambda option: -option.work):
        seconds = estimate.alike(option.load, images)
        if seconds < least:
            kept.append(option)
            least = seconds
    return tuple(kept)


def limits_of(queue: Sequence[QueuedJob]) -> list[float]:
    """All limits between which the jobs of ``queue`` make a difference, mildest first."""
    kinds = {waiting.options for waiting in queue}
    return sorted(
        {option.work for options in kinds if len(options) > 1 for option in options}, reverse=True
    )


def assign(
    queue: Sequence[QueuedJob], now: float, bounds: Bounds, of: Estimates, reserve: float = 0.0
) -> list[float]:
    """The mildest limit for each job with which it and all that run after it are in time.

    What runs before a job decides whether it is in time, so a limit holds for all jobs up to the
    last that needs it.
    """
    candidates = limits_of(queue) or [1.0]
    limits = [candidates[0]] * len(queue)
    if len(candidates) == 1:
        return limits
    future = QueueForecast(queue, now, bounds, of, reserve)
    done = future.done([(len(queue), candidates[0])])
    late = [index for index in future.late(done) if queue[index].binding]
    if not late:
        return limits
    best = future.done([(len(queue), candidates[-1])])
    # One that misses its deadline anyway needs no help; one that misses a target needs all that
    # makes it less late.
    late = [
        index
        for index in late
        if best[index] <= queue[index].due
        or (queue[index].job.deadline is None and best[index] < done[index])
    ]
    stretches = [(len(queue), candidates[0])]
    for limit in candidates[1:]:
        if not late:
            break
        edge = late[-1] + 1
        limits[:edge] = [limit] * edge
        stretches = [(edge, limit), *(stretch for stretch in stretches if stretch[0] > edge)]
        done = future.done(stretches)
        late = [index for index in late if done[index] > queue[index].due]
    return limits


@dataclass
class Steady:
    """`assign`, with a reserve, and a limit that was needed is given up slowly, so that a steady load has a steady r.

    Attributes:
        reserve: see `QueueForecast`. Without one the smallest r lets the queue grow until it just fits,
            and the next burst finds it full: accuracy would be kept at the cost of answers. Under a
            steady load it costs nothing, since there the rate of arrivals decides what the mean r
            must be, whatever the length of the queue.
        relax: seconds in which a limit may come back from nothing to all of the work at r=0.
    """

    reserve: float = 1.0
    relax: float = 2.5
    _held: float = 1.0
    _since: float = 0.0

    def limits(
        self, queue: Sequence[QueuedJob], now: float, bounds: Bounds, of: Estimates
    ) -> Sequence[float]:
        """Of the jobs of ``queue``, earliest due first. ``now``: when the next batch begins."""
        needed = assign(queue, now, bounds, of, self.reserve)
        # The batch ahead may have been done sooner than the last call was told.
        passed = max(0.0, now - self._since)
        held = min(1.0, self._held + passed / self.relax, *needed[:1])
        self._held = held
        self._since = max(self._since, now)
        return [limit if limit < held else held for limit in needed]
