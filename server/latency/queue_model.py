"""The queue model: the batches in which a queue runs, and how long each takes. Pure arithmetic.

The engine builds its next batch with it and forecasts the rest of its queue; the API process asks
it whether an image would be in time.

The device runs one batch at a time. A batch has images of one model, in the order in which they are
due. It ends

1. at its bounds: images, which limit memory, and FLOPs, which limit how long the following batch
   has to wait;
2. or earlier, if its first image would be late otherwise. So a deadline that is shorter than a full
   batch leads to a smaller one. There are two exceptions: the first image is late even alone; the
   smaller batch would be inefficient, so that it would cost more deadlines than it saves.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from server.latency.cost import NO_COST, CostModel, ImageCost

# A deadline may end a batch whose images take at most this many times as long each as those of the
# full batch. So a split costs the images that follow little throughput.
_EFFICIENT = 1.25

_ROUNDING = 1e-9  # in images at r=0; the sum of FLOPs must not lose an image to rounding


@dataclass(frozen=True)
class Bounds:
    """Limits of one batch. The first image of a batch alone may exceed the FLOPs.

    Attributes:
        images: most images.
        max_r0_images: most FLOPs, in those of one image at r=0.
    """

    images: int
    max_r0_images: float = math.inf


def second_seconds(second_costs: Sequence[ImageCost], cost_model: CostModel) -> list[float]:
    """Return what each second pass adds to its batch; an empty list if there is none at all.

    Args:
        second_costs: the mean computation of each; `NO_COST` for an image that runs once.
    """
    different = set(second_costs)
    if different == {NO_COST}:
        return []
    seconds = {cost: cost_model.image_seconds(cost) for cost in different}
    return [seconds[cost] for cost in second_costs]


class ModelQueue:
    """The images of one model in the queue, and the batches that they make.

    Args:
        image_costs: of each image, earliest due first.
        due: when each image is due; infinity if that cannot end a batch.
        second_seconds: what the second pass of each image, of those that may take one, adds to a
            later batch, by its share of images; empty if none counts. They lengthen the batch of
            the first pass, and do not change which CUDA graph runs it.

    Attributes:
        taken: number of images that have a batch.
    """

    def __init__(
        self,
        image_costs: Sequence[ImageCost],
        due: Sequence[float],
        bounds: Bounds,
        cost_model: CostModel,
        second_seconds: Sequence[float] = (),
    ) -> None:
        self._image_costs = image_costs
        self._due = due
        self._bounds = bounds
        self._cost_model = cost_model
        self._second_seconds = second_seconds
        self.taken = 0

    def __len__(self) -> int:
        """Return the number of images that have no batch yet."""
        return len(self._image_costs) - self.taken

    def take_batch(self, start: float) -> float:
        """Take the next batch off the queue, and return its seconds, the margin included.

        Args:
            start: when the batch begins.
        """
        images = self._full_batch()
        seconds = self._seconds(images)
        seconds_left = self._due[self.taken] - start
        if seconds > seconds_left:
            images = self._images_in_time(images, seconds, seconds_left)
            seconds = self._seconds(images)
        self.taken += images
        return seconds

    def _full_batch(self) -> int:
        """Return the number of images in the next batch if only the bounds end it."""
        bounds = self._bounds
        images = min(bounds.images, len(self))
        if images <= bounds.max_r0_images:
            return images
        candidates = self._image_costs[self.taken : self.taken + images]
        r0_images = list(accumulate([image_cost.relative_flops for image_cost in candidates]))
        return bisect_right(r0_images, bounds.max_r0_images + _ROUNDING) or 1

    def _images_in_time(self, full: int, full_seconds: float, seconds_left: float) -> int:
        """Return how many images finish before the first of them is due, or ``full``.

        Args:
            full: number of images in the full batch.
            full_seconds: that it takes.
            seconds_left: until the first image is due.
        """
        images = bisect_right(range(1, full), seconds_left, key=self._seconds)
        longest_seconds = _EFFICIENT * full_seconds * images / full
        if not images or self._seconds(images) > longest_seconds:
            return full
        return images

    def _seconds(self, images: int) -> float:
        """Return the seconds of a batch of the next ``images``, their second passes included."""
        seconds = self._first_passes_seconds(images)
        if self._second_seconds:
            seconds += sum(self._second_seconds[self.taken : self.taken + images])
        return seconds * (1 + self._cost_model.margin)

    def _first_passes_seconds(self, images: int) -> float:
        cost_model = self._cost_model
        batch = self._image_costs[self.taken : self.taken + images]
        if batch.count(batch[0]) == images:
            return cost_model.uniform_batch_seconds(batch[0], images)
        merging_blocks = 0
        image_seconds = 0.0
        for image_cost, count in Counter(batch).items():
            merging_blocks = max(merging_blocks, image_cost.merging_blocks)
            image_seconds += count * cost_model.image_seconds(image_cost, mixed=True)
        return cost_model.unpadded_batch_seconds(images, merging_blocks, image_seconds)
