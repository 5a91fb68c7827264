"""Adaptive r: gives queued jobs the smallest r with which all of them finish when they are due.

A job may leave its schedule to the engine and allow several. The engine sets a work limit: the
largest share of the FLOPs at r=0 that an image may take. Each job gets the schedule that merges
least within the limit, or its last one.

The limit follows from a forecast of the queue (the demand-bound test of earliest-deadline-first
scheduling, over batches): it is the highest with which no job is late, or else the lowest.

Pure: no torch, no clock; times are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.scheduling.queue_forecast import CostModels, QueuedJob, QueueForecast
from server.latency.queue_model import Bounds


def candidate_limits(queue: Sequence[QueuedJob]) -> list[float]:
    """Return all work limits that make a difference to jobs of ``queue``, highest first."""
    work_limits: set[float] = set()
    for options in {queued.options for queued in queue}:
        if len(options) > 1:
            work_limits.update(option.image_cost.relative_flops for option in options)
    return sorted(work_limits, reverse=True)


@dataclass
class AdaptiveR:
    """The work limit, with a reserve and with hysteresis: a stable load has a stable r.

    A lower limit takes effect at once; afterwards the limit rises again slowly.

    Attributes:
        reserve: see `QueueForecast`. Without a reserve, the smallest r lets the queue grow until it
            just fits, and the next burst finds it full: jobs would be refused to keep accuracy.
            Under a stable load the reserve costs nothing, since the arrival rate determines the
            mean r, whatever the length of the queue. With 1.0 each batch counts twice, so that as
            many jobs may arrive in between as are queued.
        relax_seconds: time in which the limit rises from 0 to the FLOPs at r=0. It spans
            many batches, so that r does not follow single arrivals, and about one burst and pause
            of the load in `benchmarks.simulation`.
    """

    reserve: float = 1.0
    relax_seconds: float = 2.5
    _limit: float = 1.0
    _updated_at: float = 0.0

    def work_limit(
        self,
        queue: Sequence[QueuedJob],
        now: float,
        bounds: Bounds,
        cost_models: CostModels,
    ) -> float:
        """Return the limit for ``queue``, in which one job at least has several options.

        Args:
            queue: earliest due first.
            now: when the next batch begins.
        """
        forecast = QueueForecast(queue, now, bounds, cost_models, self.reserve, second_passes=True)
        for limit in candidate_limits(queue):
            if not forecast.is_late(limit):
                break
        # ``now`` may go back: the batch in flight may end sooner than the last call expected.
        elapsed = max(0.0, now - self._updated_at)
        self._limit = min(limit, self._limit + elapsed / self.relax_seconds)
        self._updated_at = max(self._updated_at, now)
        return self._limit
