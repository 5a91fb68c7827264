"""Predicts the batches of a whole queue, as if nothing else arrived. Pure: no torch, no clock.

`QueueForecast` applies the rules of `server.engine.scheduling.batch_builder` to the queue, batch
after batch, and adds up the predicted times. Adaptive r asks it for many work limits per batch, so
it must be fast:

1. Neighbours in the queue that get the same option are counted together, as a segment.
2. Most batches end because they are full. Such a batch is found by counting, segment by segment.
3. Only where a deadline may end the batch earlier, or where models alternate, a `BatchBuilder`
   fills it job by job.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, groupby
from operator import attrgetter, gt

from server.engine.scheduling.batch_builder import (
    BatchBuilder,
    Bounds,
    CostModels,
    Option,
    QueuedJob,
)
from server.latency.cost import CostModel

_ROUNDING = 1e-9  # in images at r=0; the sum of FLOPs must not lose an image to rounding

# Neighbours in the queue that have the same work limit: the position after the last, and the limit.
LimitSegment = tuple[int, float]

# Neighbours in the queue that get the same option: the position after the last, and the option.
OptionSegment = tuple[int, Option]


def to_segments(work_limits: Sequence[float]) -> list[LimitSegment]:
    """Merge equal neighbours among ``work_limits``, one for each job, into segments."""
    segments = []
    stop = 0
    for work_limit, neighbours in groupby(work_limits):
        stop += len(list(neighbours))
        segments.append((stop, work_limit))
    return segments


def next_batch(
    queue: Sequence[QueuedJob],
    work_limits: Sequence[float],
    now: float,
    bounds: Bounds,
    cost_models: CostModels,
) -> list[Option]:
    """Return the options of the jobs in the next batch, which are the first ones of ``queue``.

    Args:
        queue: earliest due first, all of one model.
        work_limits: one for each job.
        now: when the batch begins.
    """
    options = [
        queued.option_within(work_limit)
        for queued, work_limit in zip(queue, work_limits, strict=True)
    ]
    if queue[0].due_is_binding:
        forecast = QueueForecast(queue, now, bounds, cost_models)
        return options[: forecast.first_batch_size(to_segments(work_limits))]
    # No deadline can end the batch, so only the bounds count.
    r0_images = list(accumulate([option.relative_flops for option in options[: bounds.images]]))
    size = bisect_right(r0_images, bounds.max_r0_images)
    return options[: max(size, 1)]


class QueueForecast:
    """When the jobs of a queue finish if nothing else arrives, for any work limits.

    Args:
        queue: earliest due first.
        now: when the first batch begins.
        reserve: share by which all batches but the next are lengthened, for jobs that may yet
            arrive and be due earlier.
    """

    def __init__(
        self,
        queue: Sequence[QueuedJob],
        now: float,
        bounds: Bounds,
        cost_models: CostModels,
        reserve: float = 0.0,
    ) -> None:
        self._queue = queue
        self._now = now
        self._bounds = bounds
        self._cost_models = cost_models
        self._reserve = reserve
        self._due = [queued.due for queued in queue]
        # Neighbours that have the same options: the position after the last, and the first job.
        self._neighbours: list[tuple[int, QueuedJob]] = []
        stop = 0
        for _, same_options in groupby(queue, key=attrgetter("options")):
            jobs = list(same_options)
            stop += len(jobs)
            self._neighbours.append((stop, jobs[0]))
        self._models = {queued.job.model for _, queued in self._neighbours}
        self._mixed_seconds: dict[Option, float] = {}  # of one image in a mixed batch

    def finish_times(self, limits: Sequence[LimitSegment]) -> list[float]:
        """Return when each job finishes under ``limits``."""
        finish_times: list[float] = []
        segments = self._option_segments(limits)
        index = 0
        start = self._now
        stretch = 1.0
        while len(finish_times) < len(self._queue):
            begin = len(finish_times)
            stop, seconds = self._batch_at(begin, start, segments, index)
            start += seconds * stretch
            stretch = 1.0 + self._reserve
            finish_times += [start] * (stop - begin)
            while index < len(segments) and segments[index][0] <= stop:
                index += 1
        return finish_times

    def late_positions(self, finish_times: Sequence[float]) -> list[int]:
        """Return the positions of the jobs that finish after they are due."""
        if not any(map(gt, finish_times, self._due)):
            return []
        is_late = map(gt, finish_times, self._due)
        return [position for position, late in enumerate(is_late) if late]

    def first_batch_size(self, limits: Sequence[LimitSegment]) -> int:
        """Return how many jobs the next batch has under ``limits``."""
        stop, _ = self._batch_at(0, self._now, self._option_segments(limits), 0)
        return stop

    def _option_segments(self, limits: Sequence[LimitSegment]) -> list[OptionSegment]:
        """Cross the segments of equal limits with those of equal options."""
        if len(limits) == 1:
            work_limit = limits[0][1]
            return [(stop, queued.option_within(work_limit)) for stop, queued in self._neighbours]
        segments = []
        index = 0
        for stop, queued in self._neighbours:
            while limits[index][0] < stop:
                limit_stop, work_limit = limits[index]
                segments.append((limit_stop, queued.option_within(work_limit)))
                index += 1
            _, work_limit = limits[index]
            segments.append((stop, queued.option_within(work_limit)))
        return segments

    def _batch_at(
        self,
        begin: int,
        start: float,
        segments: Sequence[OptionSegment],
        index: int,
    ) -> tuple[int, float]:
        """Return where the batch ends that begins with the job at ``begin``, and its seconds.

        Args:
            start: when the batch begins.
            index: of the segment that ``begin`` is in.
        """
        if len(self._models) > 1:
            return self._build_batch(begin, start, segments, index)
        first = self._queue[begin]
        cost_model = self._cost_models(first.job.model)
        stop, seconds, longest = self._full_batch(begin, segments, index, cost_model)
        margin = 1 + cost_model.margin
        if first.due_is_binding and start + longest * margin > first.due:
            # The deadline ends the batch earlier, unless the first job misses it even alone.
            alone = cost_model.uniform_batch_seconds(segments[index][1].image_cost, 1)
            if start + alone * margin <= first.due:
                return self._build_batch(begin, start, segments, index)
        return stop, seconds * margin

    def _full_batch(
        self,
        begin: int,
        segments: Sequence[OptionSegment],
        index: int,
        cost_model: CostModel,
    ) -> tuple[int, float, float]:
        """Find by counting the batch that begins at ``begin``, if no deadline ends it.

        Returns:
            The position after its last job; its predicted seconds, without a margin; and the
            largest prediction while it grows, since a batch of alike images that a CUDA graph runs
            may take longer than the mixed one that it becomes.
        """
        counted_options = self._count_full_batch(begin, segments, index)
        first_count, first_option = counted_options[0]
        first_image_cost = first_option.image_cost
        if len(counted_options) == 1:
            seconds = cost_model.uniform_batch_seconds(first_image_cost, first_count)
            return begin + first_count, seconds, seconds
        images = 0
        alike_images = 0  # at the front, with the cost of the first one
        total_image_seconds = 0.0
        merging_blocks = 0
        for count, option in counted_options:
            image_cost = option.image_cost
            if alike_images == images and image_cost == first_image_cost:
                alike_images += count
            images += count
            total_image_seconds += count * self._mixed_image_seconds(option, cost_model)
            merging_blocks = max(merging_blocks, image_cost.merging_blocks)
        stop = begin + images
        alike_seconds = cost_model.uniform_batch_seconds(first_image_cost, alike_images)
        if alike_images == images:
            return stop, alike_seconds, alike_seconds
        seconds = cost_model.unpadded_batch_seconds(images, merging_blocks, total_image_seconds)
        return stop, seconds, max(alike_seconds, seconds)

    def _count_full_batch(
        self,
        begin: int,
        segments: Sequence[OptionSegment],
        index: int,
    ) -> list[tuple[int, Option]]:
        """Return the options of the batch that begins at ``begin``, each with its number of jobs.

        Only the bounds end this batch. It has at least one job.
        """
        max_r0_images = self._bounds.max_r0_images
        end = min(begin + self._bounds.images, len(self._queue))
        counted_options = []
        position = begin
        r0_images = 0.0
        while position < end:
            segment_stop, option = segments[index]
            stop = min(segment_stop, end)
            if r0_images + (stop - position) * option.relative_flops > max_r0_images:
                fitting = int((max_r0_images - r0_images + _ROUNDING) / option.relative_flops)
                stop = max(position + fitting, begin + 1)
                end = stop
            count = stop - position
            if count > 0:
                counted_options.append((count, option))
            r0_images += count * option.relative_flops
            position = stop
            index += 1
        return counted_options

    def _mixed_image_seconds(self, option: Option, cost_model: CostModel) -> float:
        """Return the seconds that one image under ``option`` adds to a mixed batch."""
        seconds = self._mixed_seconds.get(option)
        if seconds is None:
            seconds = cost_model.image_seconds(option.image_cost, mixed=True)
            self._mixed_seconds[option] = seconds
        return seconds

    def _build_batch(
        self,
        begin: int,
        start: float,
        segments: Sequence[OptionSegment],
        index: int,
    ) -> tuple[int, float]:
        """Fill the batch job by job. Arguments and result are those of `_batch_at`."""
        builder = BatchBuilder(self._bounds, start)
        position = begin
        for stop, option in segments[index:]:
            cost_model = self._cost_models(self._queue[position].job.model)
            while position < stop:
                if not builder.try_add(self._queue[position], option, cost_model):
                    return position, builder.seconds
                position += 1
                position += builder.fill_padding(option, stop - position)
        return position, builder.seconds
