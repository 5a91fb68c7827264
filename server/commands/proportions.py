"""What a share of so many files says of the share of all: intervals and bounds.

A share is a proportion of a binomial distribution: files that were classified correctly, or that
keep their class.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

# Within so many deviations of its mean lie 95 % of a normal distribution.
NORMAL_DEVIATIONS = 1.959964
_RISK = 0.05  # that a bound does not hold
_HALVINGS = 60


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share, by Wilson's score.

    Args:
        hits: of ``count``, which is at least 1.
    """
    share = hits / count
    square = NORMAL_DEVIATIONS**2
    centre = share + square / (2 * count)
    half_width = NORMAL_DEVIATIONS * math.sqrt(
        share * (1 - share) / count + square / (4 * count**2),
    )
    scale = 1 + square / count
    return max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale)


def exact_interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share, by Clopper and Pearson (1934).

    It holds at least so often, also where the share is close to 0 or 1.

    Args:
        hits: of ``count``, which is at least 1.
    """
    return lower_bound(hits, count, _RISK / 2), upper_bound(hits, count, _RISK / 2)


def upper_bound(hits: int, count: int, risk: float = _RISK) -> float:
    """Return what a share is at most, with certainty ``1 - risk`` (Clopper and Pearson, 1934).

    Args:
        hits: of ``count``, which is at least 1.
        risk: that the share is larger.
    """
    if hits == count:
        return 1.0

    def is_probable(share: float) -> bool:
        return _at_most(hits, count, share) > risk

    return _largest(is_probable, hits / count, 1.0)


def lower_bound(hits: int, count: int, risk: float = _RISK) -> float:
    """Return what a share is at least; the counterpart of `upper_bound`."""
    if hits == 0:
        return 0.0

    def is_improbable(share: float) -> bool:
        return 1 - _at_most(hits - 1, count, share) <= risk

    return _largest(is_improbable, 0.0, hits / count)


def _largest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return the largest share from ``low`` to ``high`` for which ``holds``, as it does below."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return high


def _at_most(hits: int, count: int, share: float) -> float:
    """Return how probable at most ``hits`` of ``count`` are, by the binomial distribution."""
    if share in (0.0, 1.0):
        return 1.0 - share
    factorials = _log_factorials(count)
    numbers = np.arange(hits + 1)
    ways = factorials[count] - factorials[numbers] - factorials[count - numbers]
    logarithms = ways + numbers * math.log(share) + (count - numbers) * math.log1p(-share)
    return float(np.exp(logarithms).sum())


@functools.cache
def _log_factorials(count: int) -> npt.NDArray[np.float64]:
    """Return the logarithms of 0! to ``count``!."""
    logarithms = np.log(np.arange(1, count + 1, dtype=np.float64))
    return np.concatenate([[0.0], np.cumsum(logarithms)])
