"""How long work will wait: what admission refuses by, and what ``Retry-After`` says. Pure arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.latency.cost import Estimate, Load

_LONGEST_RETRY = 60


@dataclass(frozen=True)
class WorkEstimate:
    """What one image, decoded or not, needs of an engine at least.

    Attributes:
        load: under the strongest schedule that it may get.
        due: when it ought to be done, ``time.monotonic()`` seconds; earlier ones run first.
    """

    model: str
    load: Load
    due: float


def busy_seconds(
    claims: Iterable[WorkEstimate], estimates: Mapping[str, Estimate], max_batch: int
) -> float:
    """Seconds in which an engine does all that ``claims`` need, in batches as large as may be."""
    loads: dict[str, list[Load]] = {}
    for claim in claims:
        loads.setdefault(claim.model, []).append(claim.load)
    return sum(
        _model_seconds(Counter(each), estimates[model], max_batch) for model, each in loads.items()
    )


def _model_seconds(counts: Counter[Load], estimate: Estimate, max_batch: int) -> float:
    """Seconds for the images of one model, ``counts`` of each load.

    Images of rarer loads are taken to be in as many batches as they can be, which are mixed ones
    then.
    """
    (common, most), *_ = counts.most_common(1)
    images = counts.total()
    mixed = min(images - most, math.ceil(images / max_batch))
    full, rest = divmod(max(0, images - mixed * max_batch), max_batch)
    seconds = full * estimate.alike(common, max_batch) + (
        estimate.alike(common, rest) if rest else 0.0
    )
    if mixed:
        each = sum(count * estimate.image(load, mixed=True) for load, count in counts.items())
        each -= (full * max_batch + rest) * estimate.image(common, mixed=True)
        size = math.ceil((images - full * max_batch - rest) / mixed)
        seconds += mixed * estimate.unlike(size, max(load.blocks for load in counts), each / mixed)
    return seconds


def answer_seconds(
    claim: WorkEstimate,
    ahead: Sequence[WorkEstimate],
    done: float,
    estimates: Mapping[str, Estimate],
    max_batch: int,
) -> float:
    """Seconds until an engine would have done ``claim`` after all that is ``ahead`` of it, with a margin for error.

    With nothing ahead it is the time of the image alone on a quiet machine: a batch that runs is
    what corrects an estimate that is wrong.

    Args:
        done: seconds of work on ``ahead`` that are over.
    """
    estimate = estimates[claim.model]
    if ahead:
        # The errors of several batches cancel in part, as those of independent measurements do.
        margin = estimate.margin / math.sqrt(math.ceil((len(ahead) + 1) / max_batch))
        return max(0.0, busy_seconds([*ahead, claim], estimates, max_batch) - done) * (1 + margin)
    return estimate.quiet().alike(claim.load, 1)


def retry_after(seconds: float) -> int:
    """``seconds`` of waiting as a ``Retry-After``: whole, not 0, and bounded, since the future is not known so far."""
    return max(1, min(math.ceil(seconds), _LONGEST_RETRY))
