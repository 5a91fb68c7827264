"""Adaptive r: gives each queued job the smallest r with which all jobs finish when they are due.

A job may leave its schedule to the engine and allow several. The engine sets a work limit for each
job: the largest share of the FLOPs at r=0 that its image may take. The job gets the schedule that
merges least within the limit, or its last one.

The limits follow from a forecast of the queue (the demand-bound test of earliest-deadline-first
scheduling, over batches):

1. Start with the highest limit, under which every job merges as little as it allows.
2. Predict when each job finishes, and find the jobs that are late and that merging can help.
3. Lower the limit of all jobs up to the last late one by one level, and predict again.
4. Stop when no job is late, or at the lowest limit.

Pure: no torch, no clock; times are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from server.engine.scheduling.batch_builder import Bounds, CostModels, Option, QueuedJob
from server.engine.scheduling.queue_forecast import QueueForecast
from server.latency.cost import CostModel


def useful_options(
    options: Iterable[Option],
    cost_model: CostModel,
    images: int,
) -> tuple[Option, ...]:
    """Sort ``options`` from least to most merging, without those that save no time.

    Merging costs time too, so fewer FLOPs do not always mean less time. An option that merges more
    and is no faster only costs accuracy.

    Args:
        images: size of the batch in which options are compared.
    """
    useful: list[Option] = []
    least_seconds = math.inf
    for option in sorted(options, key=_least_merging_first):
        seconds = cost_model.uniform_batch_seconds(option.image_cost, images)
        if seconds < least_seconds:
            useful.append(option)
            least_seconds = seconds
    return tuple(useful)


def _least_merging_first(option: Option) -> float:
    return -option.relative_flops


def candidate_limits(queue: Sequence[QueuedJob]) -> list[float]:
    """Return all work limits that make a difference to jobs of ``queue``, highest first."""
    work_limits: set[float] = set()
    for options in {queued.options for queued in queue}:
        if len(options) > 1:
            work_limits.update(option.relative_flops for option in options)
    return sorted(work_limits, reverse=True)


def required_limits(
    queue: Sequence[QueuedJob],
    now: float,
    bounds: Bounds,
    cost_models: CostModels,
    reserve: float = 0.0,
) -> list[float]:
    """Return for each job the highest limit with which it and all later jobs are in time.

    The jobs that run before a job decide whether it is in time. So a limit holds for all jobs up
    to the last one that needs it.

    Args:
        queue: earliest due first.
        now: when the next batch begins.
        reserve: see `QueueForecast`.
    """
    candidates = candidate_limits(queue) or [1.0]
    highest = candidates[0]
    required = [highest] * len(queue)
    if len(candidates) == 1:
        return required
    forecast = QueueForecast(queue, now, bounds, cost_models, reserve)
    late = _late_jobs_that_merging_helps(queue, forecast, candidates)
    segments = [(len(queue), highest)]
    for limit in candidates[1:]:
        if not late:
            break
        stop = late[-1] + 1
        required[:stop] = [limit] * stop
        later_segments = [segment for segment in segments if segment[0] > stop]
        segments = [(stop, limit), *later_segments]
        finish_times = forecast.finish_times(segments)
        late = [position for position in late if finish_times[position] > queue[position].due]
    return required


def _late_jobs_that_merging_helps(
    queue: Sequence[QueuedJob],
    forecast: QueueForecast,
    candidates: Sequence[float],
) -> list[int]:
    """Return the positions of jobs that are late under the highest limit and profit from others.

    A job that misses its deadline under the lowest limit too cannot be in time. A job that misses
    only a target profits from everything that makes it less late.
    """
    exact_times = forecast.finish_times([(len(queue), candidates[0])])
    late = [
        position
        for position in forecast.late_positions(exact_times)
        if queue[position].due_is_binding
    ]
    if not late:
        return []
    fastest_times = forecast.finish_times([(len(queue), candidates[-1])])
    helped = []
    for position in late:
        queued = queue[position]
        in_time = fastest_times[position] <= queued.due
        sooner = fastest_times[position] < exact_times[position]
        if in_time or (queued.job.deadline is None and sooner):
            helped.append(position)
    return helped


@dataclass
class AdaptiveR:
    """`required_limits` with a reserve and with hysteresis: a stable load has a stable r.

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

    def work_limits(
        self,
        queue: Sequence[QueuedJob],
        now: float,
        bounds: Bounds,
        cost_models: CostModels,
    ) -> Sequence[float]:
        """Return the limit of each job of ``queue``, earliest due first.

        Args:
            now: when the next batch begins.
        """
        required = required_limits(queue, now, bounds, cost_models, self.reserve)
        # ``now`` may go back: the batch in flight may end sooner than the last call expected.
        elapsed = max(0.0, now - self._updated_at)
        highest = min(1.0, self._limit + elapsed / self.relax_seconds, *required[:1])
        self._limit = highest
        self._updated_at = max(self._updated_at, now)
        return [limit if limit < highest else highest for limit in required]
