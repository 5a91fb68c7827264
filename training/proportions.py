"""How sure a share of right answers is."""

from __future__ import annotations

import math

from torch import Tensor

SPREAD = 1.96  # standard deviations of a 95% interval


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of the share ``hits / total``."""
    if total == 0:
        return 0.0, 1.0
    share = hits / total
    square = SPREAD**2 / total
    centre = (share + square / 2) / (1 + square)
    half = SPREAD / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return centre - half, centre + half


def loss(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Return how much accuracy is lost, as a share of the clips, and its standard error.

    Args:
        before, after: whether each clip ``(clips,)`` is classified right; the same clips.
    """
    differences = before.double() - after.double()
    error = differences.std() / math.sqrt(len(differences))
    return differences.mean().item(), error.item()
