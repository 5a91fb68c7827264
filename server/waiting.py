"""How long work will wait: what admission refuses by, and what ``Retry-After`` says. Pure arithmetic."""

from __future__ import annotations

import math

_FALL = 0.1
_LONGEST_RETRY = 60


def next_rate(rate: float | None, images: int, seconds: float, saturated: bool) -> float | None:
    """The drain rate in images/s after one more batch of ``images`` that took ``seconds``; None while unknown.

    It rises at once and falls slowly: a rate that is too high lets in a request whose own timer then answers it, one
    that is too low refuses work that could have been done. And only a batch behind which others waited
    (``saturated``) can lower it, since one that was small for lack of work says nothing of how fast a queue drains.
    """
    if seconds <= 0:
        return rate
    measured = images / seconds
    if rate is None or measured >= rate:
        return measured
    # Times of images are averaged, not rates, of which a large one would outweigh many small ones.
    return 1 / ((1 - _FALL) / rate + _FALL / measured) if saturated else rate


def predicted_wait(ahead: int, rate: float | None) -> float:
    """Seconds until ``ahead`` images are done at ``rate`` images/s; 0 while the rate is unknown.

    It is 0 with nothing ahead, whatever the rate: work that is let in is what corrects a rate that is wrong.
    """
    return ahead / rate if ahead and rate else 0.0


def retry_after(seconds: float) -> int:
    """``seconds`` of waiting as a ``Retry-After``: whole, not 0, and bounded, since the future is not known so far."""
    return max(1, min(math.ceil(seconds), _LONGEST_RETRY))
