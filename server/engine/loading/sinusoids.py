"""Sinusoid positions, of models that do not learn theirs (arXiv 1706.03762, section 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor

_PERIOD = 10_000.0


def sinusoid_positions(count: int, width: int) -> Tensor:
    """Return the positions of ``count`` tokens in one row, float32 ``(1, count, width)``.

    Even channels are sines, odd ones the cosines of the same angle. VideoMAE numbers the tubelets
    of a clip through: by time, then by row and column.
    """
    channels = torch.arange(width, dtype=torch.float64)
    frequencies = _PERIOD ** -(2 * (channels // 2) / width)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * frequencies
    positions = torch.where(channels % 2 == 0, angles.sin(), angles.cos())
    return positions.float()[None]
