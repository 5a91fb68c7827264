"""How long work will wait: what admission refuses by, and what ``Retry-After`` says. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.costs import Estimate, Load

_LONGEST_RETRY = 60


@dataclass(frozen=True)
class Claim:
    """What one image, decoded or not, needs of an engine at least.

    Attributes:
        load: under the strongest schedule that it may get.
        due: when it ought to be done, ``time.monotonic()`` seconds; earlier ones run first.
    """

    model: str
    load: Load
    due: float


def busy_seconds(claims: Iterable[Claim], estimates: Mapping[str, Estimate], max_batch: int) -> float:
    """Seconds in which an engine does all that ``claims`` need, in batches as large as may be."""
    seconds, images = 0.0, dict.fromkeys(estimates, 0)
    for claim in claims:
        seconds += estimates[claim.model].image(claim.load)
        images[claim.model] += 1
    batches = sum(math.ceil(count / max_batch) * estimates[model].overhead for model, count in images.items())
    return seconds + batches


def answer_seconds(
    claim: Claim, ahead: Sequence[Claim], done: float, estimates: Mapping[str, Estimate], max_batch: int
) -> float:
    """Seconds until an engine would have done ``claim`` after all that is ``ahead`` of it, with a margin for error.

    With nothing ahead it is the time of the image alone on a quiet machine: a batch that runs is what corrects an
    estimate that is wrong.

    Args:
        done: seconds of work on ``ahead`` that are over.
    """
    estimate = estimates[claim.model]
    if ahead:
        # The errors of several batches cancel in part, as those of independent measurements do.
        margin = estimate.margin / math.sqrt(math.ceil((len(ahead) + 1) / max_batch))
        return max(0.0, busy_seconds([*ahead, claim], estimates, max_batch) - done) * (1 + margin)
    return estimate.quiet().overhead + estimate.quiet().image(claim.load)


def retry_after(seconds: float) -> int:
    """``seconds`` of waiting as a ``Retry-After``: whole, not 0, and bounded, since the future is not known so far."""
    return max(1, min(math.ceil(seconds), _LONGEST_RETRY))
