"""How certain an accuracy is that was measured on so many files."""

from __future__ import annotations

import math

_DEVIATIONS = 1.959964  # of a normal distribution, within which 95 % of it lie


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share, by Wilson's score.

    Args:
        hits: of ``count``, which is at least 1.
    """
    share = hits / count
    square = _DEVIATIONS**2
    centre = share + square / (2 * count)
    half_width = _DEVIATIONS * math.sqrt(
        share * (1 - share) / count + square / (4 * count**2),
    )
    scale = 1 + square / count
    return max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale)
