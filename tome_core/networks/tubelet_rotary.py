"""Rotary positions of tubelets: by time, row and column, as in V-JEPA 2 (arXiv 2506.09985)."""

from __future__ import annotations

import torch
from torch import Tensor

_BASE = 10_000.0


def rotary_table(
    grid: tuple[int, int, int],
    head_dim: int,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return sines, then cosines, of the angles of all tubelets, in the layout of timm's tables.

    A head has three segments of equal, even width, which turn by time, by row and by column. The
    channels that are left stay: of 64, three times 20 turn and 4 stay.

    Args:
        grid: times, rows and columns of tubelets, which come in this order.
        head_dim: channels d of a head.
        device: of the result.
        dtype: of the network. The angles are computed in float32 at least.

    Returns:
        ``(N, 2 * d)``.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    width = head_dim // 3 // 2 * 2
    segments = []
    for axis, count in enumerate(grid):
        shape = [1, 1, 1, width]
        shape[axis] = count
        of_axis = _axis_angles(count, width, device, dtype).view(shape)
        segments.append(of_axis.expand(*grid, width))
    still = torch.zeros(*grid, head_dim - 3 * width, device=device, dtype=dtype)
    angles = torch.cat([*segments, still], dim=-1).flatten(0, 2)  # (N, d)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _axis_angles(
    count: int,
    width: int,
    device: torch.device | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return the angle of every channel of a segment at each place of its axis, ``(count, width)``.

    Channels 2i and 2i + 1 turn together, but their angles differ: the authors tile the frequencies,
    where a rotation would repeat each of them. The released weights were trained so.
    """
    frequencies = width // 2
    exponents = torch.arange(frequencies, device=device, dtype=dtype) / max(frequencies, 1)
    by_channel = (_BASE**-exponents).repeat(2)  # (width,)
    places = torch.arange(count, device=device, dtype=dtype)
    return torch.outer(places, by_channel)
