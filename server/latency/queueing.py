"""Queueing delay: when an engine completes an image, for admission and for ``Retry-After``.

Pure arithmetic over the cost model of `server.latency.cost`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.latency.cost import CostModel, ImageCost

_LONGEST_RETRY = 60  # seconds; nobody can predict the queue any further ahead


@dataclass(frozen=True)
class WorkEstimate:
    """The work of one image, at least; the image may not be decoded yet.

    Attributes:
        model: name of the model that runs the image.
        image_cost: the computation under that schedule of the image's choices that merges most.
        due: when the answer is due, in ``time.monotonic()`` seconds; the engine runs the earliest
            first.
    """

    model: str
    image_cost: ImageCost
    due: float


def queue_seconds(
    queue: Iterable[WorkEstimate],
    cost_models: Mapping[str, CostModel],
    max_batch: int,
) -> float:
    """Return the seconds in which an engine runs all of ``queue``, in the largest batches possible.

    Args:
        cost_models: the cost model of each model, by name.
        max_batch: most images in one batch.
    """
    costs_by_model: dict[str, list[ImageCost]] = {}
    for work in queue:
        costs = costs_by_model.setdefault(work.model, [])
        costs.append(work.image_cost)
    return sum(
        _model_queue_seconds(Counter(costs), cost_models[model], max_batch)
        for model, costs in costs_by_model.items()
    )


def _model_queue_seconds(
    counts: Counter[ImageCost],
    cost_model: CostModel,
    max_batch: int,
) -> float:
    """Return the seconds for all images of one model.

    A batch is uniform if all its images have the most common cost, else mixed. Every image with
    another cost is assumed to make one more batch a mixed one, until all batches are mixed:

        mixed_batches = min(images with another cost, ceil(images / max_batch))
        seconds = seconds of the uniform batches + seconds of the mixed batches

    Args:
        counts: number of images with each cost.
    """
    images = counts.total()
    [(common, common_images)] = counts.most_common(1)
    batches = math.ceil(images / max_batch)
    mixed_batches = min(images - common_images, batches)
    uniform_images = max(0, images - mixed_batches * max_batch)
    full_batches, partial_batch = divmod(uniform_images, max_batch)
    seconds = full_batches * cost_model.uniform_batch_seconds(common, max_batch)
    if partial_batch:
        seconds += cost_model.uniform_batch_seconds(common, partial_batch)
    if mixed_batches:
        image_seconds = _mixed_image_seconds(counts, cost_model)
        image_seconds -= uniform_images * cost_model.image_seconds(common, mixed=True)
        mixed_size = math.ceil((images - uniform_images) / mixed_batches)
        seconds += mixed_batches * cost_model.unpadded_batch_seconds(
            images=mixed_size,
            merging_blocks=max(image_cost.merging_blocks for image_cost in counts),
            image_seconds=image_seconds / mixed_batches,
        )
    return seconds


def _mixed_image_seconds(counts: Counter[ImageCost], cost_model: CostModel) -> float:
    """Return the seconds that all images add to their batches, if all these are mixed."""
    return sum(
        count * cost_model.image_seconds(image_cost, mixed=True)
        for image_cost, count in counts.items()
    )


def completion_seconds(
    work: WorkEstimate,
    ahead: Sequence[WorkEstimate],
    elapsed: float,
    cost_models: Mapping[str, CostModel],
    max_batch: int,
) -> float:
    """Return the seconds from now until an engine completes ``work``, with a margin for errors.

        (queue_seconds(ahead and work) - elapsed) * (1 + margin / sqrt(batches))

    With nothing ahead it is the time of the image alone on an undisturbed machine: an idle
    engine gets every image that can be in time at all, so that an estimate that is too high is
    corrected by the next batch.

    Args:
        ahead: the work that the engine runs before it, the current batch included.
        elapsed: seconds of the work ahead that have passed already.
        cost_models: the cost model of each model, by name.
        max_batch: most images in one batch.
    """
    cost_model = cost_models[work.model]
    if not ahead:
        return cost_model.undisturbed().uniform_batch_seconds(work.image_cost, 1)
    # The errors of several batches are independent and cancel in part: the relative error of the
    # mean of n independent measurements falls with sqrt(n).
    batches = math.ceil((len(ahead) + 1) / max_batch)
    margin = cost_model.margin / math.sqrt(batches)
    queue = [*ahead, work]
    seconds = queue_seconds(queue, cost_models, max_batch)
    remaining = max(0.0, seconds - elapsed)
    return remaining * (1 + margin)


def whole_retry_seconds(seconds: float) -> int:
    """Return a ``Retry-After`` of about ``seconds``: whole seconds (RFC 9110), from 1 to 60."""
    whole = math.ceil(seconds)
    return max(1, min(whole, _LONGEST_RETRY))
