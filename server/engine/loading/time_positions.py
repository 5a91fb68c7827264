"""Position embeddings of a spectrogram for windows of another length."""

from __future__ import annotations

import logging

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

log = logging.getLogger("tome.engine")

Grid = tuple[int, int]  # rows, columns


def fit_in_time(
    positions: Tensor,
    old_grid: Grid,
    new_grid: Grid,
    prefix: int,
    *,
    time_last: bool,
) -> Tensor:
    """Return ``positions`` for another number of patches in time, as AST's authors do.

    A shorter window takes the middle of them, so that neighbours stay as far apart as the model
    learned; a longer one stretches them, bilinearly.

    Args:
        positions: ``(1, prefix + rows * columns, D)``.
        old_grid, new_grid: rows and columns of patches.
        prefix: positions of prefix tokens at the front.
        time_last: whether columns are time, and not rows.

    Returns:
        ``(1, prefix + rows * columns, D)`` of the new grid.
    """
    if old_grid == new_grid:
        return positions
    log.info("positions of %d x %d patches fitted to %d x %d", *old_grid, *new_grid)
    axis = 1 if time_last else 0
    if new_grid[axis] > old_grid[axis]:
        return resample_abs_pos_embed(
            positions,
            new_size=list(new_grid),
            old_size=list(old_grid),
            num_prefix_tokens=prefix,
            interpolation="bilinear",
            antialias=False,
        )
    return _middle(positions, old_grid, new_grid, prefix)


def _middle(positions: Tensor, old_grid: Grid, new_grid: Grid, prefix: int) -> Tensor:
    rows, columns = new_grid
    # Not half the difference, which is one less where an even number shrinks to an odd one.
    top = old_grid[0] // 2 - rows // 2
    left = old_grid[1] // 2 - columns // 2
    on_grid = positions[:, prefix:].unflatten(1, old_grid)  # (1, rows, columns, D)
    kept = on_grid[:, top : top + rows, left : left + columns]
    return torch.cat([positions[:, :prefix], kept.flatten(1, 2)], dim=1)
