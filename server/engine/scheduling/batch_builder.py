"""Builds one batch from the head of the queue. Pure: no torch, no clock; times are arguments.

The device runs one batch at a time. `BatchBuilder` fills the next one in these steps:

1. Jobs join in the order in which they are due, each under the option (schedule) chosen for it.
2. A job does not join if the batch would exceed its bounds: images, which limit memory, and FLOPs,
   which limit how long the following batch has to wait.
3. The cost model predicts how long the batch takes with the job in it. `BatchCost` keeps that
   prediction up to date image by image. Batches that a CUDA graph runs are padded to a bucket, so
   further images are free until the bucket is full.
4. A job does not join if the batch would then end after the deadline of its first job. So a
   deadline that is shorter than a full batch leads to a smaller batch. There are three exceptions:
   the first job has no deadline to keep; the first job is late even alone; the batch is still
   mostly overhead, so that splitting it would cost more deadlines than it saves.

The first job that does not join ends the batch: later jobs that would fit do not overtake it.

`server.engine.scheduling.queue_forecast` applies the same rules to the whole queue.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from server.ipc.messages import Job
from server.latency.cost import CostModel, ImageCost
from tome_core.schedule import Schedule

# A deadline may end a batch that lasts more than this many times its overhead. The overhead is then
# less than a fifth of the batch, so that a split costs the jobs that follow little throughput.
_EFFICIENT = 5

# Returns the latest cost model of a network, by the name of its model.
CostModels = Callable[[str], CostModel]


@dataclass(frozen=True, eq=False)
class Option:
    """One schedule that a job may get.

    Attributes:
        relative_flops: FLOPs of one image, as a share of those at r=0.
        image_cost: what one image adds to the cost of its batch.
    """

    schedule: Schedule
    relative_flops: float
    image_cost: ImageCost


@dataclass(slots=True, eq=False)
class QueuedJob:
    """One job in the queue.

    Attributes:
        options: from least to most merging, each faster in full batches than those before it.
            There is one where the request names a schedule.
        due: time of its deadline; without a deadline, the time of its arrival plus a target.
        due_is_binding: whether ``due`` may end a batch or lower work limits. True with a deadline,
            and for a job that leaves its schedule to the engine.
    """

    job: Job
    options: tuple[Option, ...]
    due: float
    due_is_binding: bool

    def option_within(self, work_limit: float) -> Option:
        """Return the option that merges least within ``work_limit``, or the last where none is."""
        for option in self.options:
            if option.relative_flops <= work_limit:
                return option
        return self.options[-1]


@dataclass(frozen=True)
class Bounds:
    """Limits of one batch.

    Attributes:
        images: most images.
        max_r0_images: most FLOPs, in those of one image at r=0.
    """

    images: int
    max_r0_images: float = float("inf")


class BatchCost(NamedTuple):
    """Predicted time of a batch of one model that grows image by image, without a margin.

    Attributes:
        image_cost: of each image while all are alike; None in a mixed batch.
        image_seconds: what one image adds, while all are alike.
        bucket: batch size of the CUDA graph that runs the batch; 0 where none does.
        merging_blocks: number of blocks in which the batch merges.
        total_image_seconds: what all images add together.
        seconds: of the whole batch.
    """

    images: int = 0
    image_cost: ImageCost | None = None
    image_seconds: float = 0.0
    bucket: int = 0
    merging_blocks: int = 0
    total_image_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def overhead(self) -> float:
        """Seconds that the batch takes besides what its images add."""
        return self.seconds - self.total_image_seconds

    def with_image(self, image_cost: ImageCost, cost_model: CostModel) -> BatchCost:
        """Return the cost with one more image of ``image_cost``."""
        if not self.images:
            return self._with_alike(image_cost, cost_model.image_seconds(image_cost), cost_model)
        if image_cost == self.image_cost:
            return self._with_alike(image_cost, self.image_seconds, cost_model)
        return self._with_different(image_cost, cost_model)

    def with_padding_filled(self, images: int) -> BatchCost:
        """Return the cost with ``images`` more like the last one, within the bucket."""
        total_image_seconds = self.total_image_seconds + images * self.image_seconds
        return self._replace(images=self.images + images, total_image_seconds=total_image_seconds)

    def _with_alike(
        self, image_cost: ImageCost, image_seconds: float, cost_model: CostModel
    ) -> BatchCost:
        images = self.images + 1
        total_image_seconds = self.total_image_seconds + image_seconds
        bucket = self.bucket
        if images <= bucket:
            seconds = self.seconds  # the graph runs the whole bucket anyway
        elif self.images and not cost_model.recorded.buckets:
            seconds = self.seconds + image_seconds
        else:
            bucket = cost_model.recorded.bucket(image_cost, images)
            if bucket:
                seconds = cost_model.uniform_batch_seconds(image_cost, images)
            else:
                seconds = cost_model.unpadded_batch_seconds(
                    images, image_cost.merging_blocks, total_image_seconds
                )
        return BatchCost(
            images,
            image_cost,
            image_seconds,
            bucket,
            image_cost.merging_blocks,
            total_image_seconds,
            seconds,
        )

    def _with_different(self, image_cost: ImageCost, cost_model: CostModel) -> BatchCost:
        total_image_seconds = self.total_image_seconds
        if self.image_cost is not None:  # the batch becomes a mixed one
            total_image_seconds = self.images * cost_model.image_seconds(
                self.image_cost, mixed=True
            )
        total_image_seconds += cost_model.image_seconds(image_cost, mixed=True)
        images = self.images + 1
        merging_blocks = max(self.merging_blocks, image_cost.merging_blocks)
        seconds = cost_model.unpadded_batch_seconds(images, merging_blocks, total_image_seconds)
        return BatchCost(images, None, 0.0, 0, merging_blocks, total_image_seconds, seconds)


_EMPTY = BatchCost()


@dataclass
class BatchBuilder:
    """Fills one batch, job by job, in the order in which jobs are due.

    In a forecast a batch may hold jobs of several models: each job of another model counts with
    its share of some other batch.

    Attributes:
        start: when the batch begins.
        images: number of jobs in the batch.
        r0_images: their FLOPs, in those of one image at r=0.
        seconds: predicted time of the batch, with the margin of the cost model.
    """

    bounds: Bounds
    start: float
    images: int = 0
    r0_images: float = 0.0
    seconds: float = 0.0
    _model: str = ""  # of the first job
    _deadline: float = float("inf")  # which may end the batch
    _cost: BatchCost = _EMPTY  # of the jobs of the first job's model
    _other_seconds: float = 0.0  # of the jobs of other models

    def try_add(self, queued: QueuedJob, option: Option, cost_model: CostModel) -> bool:
        """Add the job under ``option`` if it may join. Returns whether it joined."""
        if self.images and self._exceeds_bounds(option):
            return False
        cost = self._cost
        other_seconds = self._other_seconds
        if not self.images or queued.job.model == self._model:
            cost = cost.with_image(option.image_cost, cost_model)
        else:
            other_seconds += cost_model.image_seconds(option.image_cost)
        seconds = (cost.seconds + other_seconds) * (1 + cost_model.margin)
        end = self.start + seconds
        if not self.images:
            self._model = queued.job.model
            if queued.due_is_binding and end <= queued.due:
                self._deadline = queued.due
        elif end > self._deadline and self._may_end_before(cost, option, cost_model):
            return False
        self.images += 1
        self.r0_images += option.relative_flops
        self.seconds = seconds
        self._cost = cost
        self._other_seconds = other_seconds
        return True

    def fill_padding(self, option: Option, available: int) -> int:
        """Add jobs like the last one in place of padding, and return how many joined.

        They cost no time, so they need not be checked individually. None joins where that is not
        certain.

        Args:
            available: number of such jobs that follow in the queue.
        """
        padding = self._cost.bucket - self._cost.images
        count = min(available, self.bounds.images - self.images, padding)
        r0_images = self.r0_images + count * option.relative_flops
        is_alike = self._cost.images == self.images and option.image_cost == self._cost.image_cost
        is_late = self.start + self.seconds > self._deadline
        if count <= 0 or not is_alike or is_late or r0_images > self.bounds.max_r0_images:
            return 0
        self.images += count
        self.r0_images = r0_images
        self._cost = self._cost.with_padding_filled(count)
        return count

    def _exceeds_bounds(self, option: Option) -> bool:
        is_full = self.images == self.bounds.images
        return is_full or self.r0_images + option.relative_flops > self.bounds.max_r0_images

    def _may_end_before(self, grown: BatchCost, option: Option, cost_model: CostModel) -> bool:
        """Return whether a deadline may end the batch here, instead of letting it become `grown`.

        It may where the batch is efficient already, or where the image costs more in this batch
        than in one of its own.
        """
        if self.seconds > _EFFICIENT * self._cost.overhead:
            return True
        added_seconds = grown.seconds - self._cost.seconds
        return added_seconds > cost_model.uniform_batch_seconds(option.image_cost, 1)
