"""Rotary positions of merged tokens: a merged token has the position of its destination.

Keys are rotated before matching, so tokens are compared as attention sees them. A token of several
patches is rotated by the angles of the patch into which the others merged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotary:
    """Angles for every input token, for all blocks or for each.

    Attributes:
        tables: one, or one per block: ``(N0, 1 or H, 2 * d)``, sines, then cosines. The angles of
            prefix tokens are 0.
        half: which channels form a pair: i and i + d / 2 if True, else neighbours.
    """

    tables: tuple[Tensor, ...]
    half: bool

    @property
    def has_bias(self) -> bool:
        """False: positions rotate queries and keys."""
        return False

    def rotate(
        self,
        x: Tensor,
        block: int,
        positions: Tensor,
    ) -> Tensor:
        """Rotate queries or keys.

        Args:
            x: queries or keys ``(T, H, d)``.
            block: index of the block.
            positions: input positions ``(T,)``.

        Returns:
            ``(T, H, d)`` in the dtype of ``x``.
        """
        table = self.tables[0]
        if len(self.tables) > 1:
            table = self.tables[block]
        angles = table[positions]  # (T, 1 or H, 2 * d)
        sines, cosines = angles.chunk(2, dim=-1)  # (T, 1 or H, d) each
        rotated = x * cosines + _quarter_turn(x, self.half) * sines  # (T, H, d)
        return rotated.to(x.dtype)

    def bias(self, block: int, positions: Tensor | None) -> None:
        """Return None: rotary positions add nothing to the logits."""


def make_rotary(
    tables: Tensor,
    prefix: int,
    half: bool,
) -> Rotary:
    """Return the angles of all input tokens from timm's angles of patches.

    Args:
        tables: ``(N, 2 * d)``, or ``(depth, H, N, 2 * d)`` if blocks and heads differ.
        prefix: number of prefix tokens.
        half: see `Rotary`.
    """
    if tables.ndim == 2:
        tables = tables[None, None]  # (1, 1, N, 2 * d)
    sines, cosines = zero_angles(tables, prefix)
    of_prefix = torch.cat([sines, cosines], dim=-1)  # (depth or 1, H or 1, prefix, 2 * d)
    of_all = torch.cat([of_prefix, tables], dim=2)  # (depth or 1, H or 1, N0, 2 * d)
    by_block = tuple(table.transpose(0, 1) for table in of_all)
    return Rotary(by_block, half)


def zero_angles(tables: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Return sines (0) and cosines (1) of angles of 0, ``(depth, H, prefix, d)`` each."""
    depth, heads, _, width = tables.shape
    shape = (depth, heads, prefix, width // 2)
    sines = tables.new_zeros(shape)
    cosines = tables.new_ones(shape)
    return sines, cosines


def _quarter_turn(x: Tensor, half: bool) -> Tensor:
    """Replace each pair of channels ``(a, b)`` by ``(-b, a)``."""
    if half:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([-b, a], dim=-1)
    a = x[..., ::2]  # (..., d / 2)
    b = x[..., 1::2]  # (..., d / 2)
    pairs = torch.stack([-b, a], dim=-1)  # (..., d / 2, 2)
    return pairs.flatten(-2)
