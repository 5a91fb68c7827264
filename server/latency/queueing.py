"""Queueing delay: when an engine completes an image, for admission and for ``Retry-After``.

Pure arithmetic over the queue model of `server.latency.queue_model`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple

from server.latency.cost import NO_COST, CostModel, ImageCost
from server.latency.queue_model import Bounds, ModelQueue, second_seconds

_LONGEST_RETRY = 60  # seconds; nobody can predict the queue any further ahead


class WorkEstimate(NamedTuple):
    """The work of one image, at least; the image may not be decoded yet.

    Attributes:
        model: name of the model that runs the image.
        image_cost: the computation under that schedule of the image's choices that merges most.
        due: when the answer is due, in ``time.monotonic()`` seconds; the engine runs the earliest
            first.
        second: the mean computation of the second passes of such images, most of which take none.
        generation: of the engines that have the model.
    """

    model: str
    image_cost: ImageCost
    due: float
    second: ImageCost = NO_COST
    generation: int = 0


def queue_seconds(
    queue: Iterable[WorkEstimate],
    cost_models: Mapping[str, CostModel],
    max_batch: int,
) -> float:
    """Return the seconds in which an engine runs all of ``queue``, by the queue model.

    Only images bound its batches: the engine decides whether a deadline ends one. There is no
    margin for errors of the predictions.

    Args:
        cost_models: the cost model of each model, by name.
        max_batch: most images in one batch.
    """
    by_model: dict[str, list[WorkEstimate]] = {}
    for work in sorted(queue, key=attrgetter("due")):
        by_model.setdefault(work.model, []).append(work)
    seconds = 0.0
    for model, works in by_model.items():
        image_costs = [work.image_cost for work in works]
        due = [math.inf] * len(works)
        cost_model = replace(cost_models[model], margin=0.0)
        seconds_again = second_seconds([work.second for work in works], cost_model)
        model_queue = ModelQueue(image_costs, due, Bounds(max_batch), cost_model, seconds_again)
        while model_queue:
            seconds += model_queue.take_batch(0.0)
    return seconds


def completion_seconds(
    work: WorkEstimate,
    ahead: Sequence[WorkEstimate],
    elapsed: float,
    cost_models: Mapping[str, CostModel],
    max_batch: int,
    remaining: float = 0.0,
) -> float:
    """Return the seconds from now until an engine completes ``work``, with a margin for errors.

        (queue_seconds(ahead and work) - elapsed) * (1 + margin / sqrt(batches))

    The errors of several batches are independent and cancel in part: the relative error of the
    mean of n independent measurements falls with sqrt(n). With the whole margin for each batch,
    admission would refuse images that are in time.

    With nothing ahead it is the time of the image alone on an undisturbed machine: an idle
    engine gets every image that can be in time at all, so that an estimate that is too high is
    corrected by the next batch.

    Args:
        ahead: the work that the engine runs before it, the current batch included.
        elapsed: seconds of the work ahead that have passed already.
        cost_models: the cost model of each model, by name.
        max_batch: most images in one batch.
        remaining: seconds that the current batch still takes. It comes first even if all its images
            are due later, and ``ahead`` has none of them.
    """
    cost_model = cost_models[work.model]
    if not ahead:
        undisturbed = cost_model.undisturbed()
        alone = undisturbed.uniform_batch_seconds(work.image_cost, 1)
        return remaining + alone + undisturbed.image_seconds(work.second)
    batches = math.ceil((len(ahead) + 1) / max_batch)
    margin = cost_model.margin / math.sqrt(batches)
    seconds = queue_seconds([*ahead, work], cost_models, max_batch) - elapsed
    return max(remaining, seconds * (1 + margin))


def whole_retry_seconds(seconds: float) -> int:
    """Return a ``Retry-After`` of about ``seconds``: whole seconds (RFC 9110), from 1 to 60."""
    whole = math.ceil(seconds)
    return max(1, min(whole, _LONGEST_RETRY))
