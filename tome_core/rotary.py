"""Rotary positions of merged tokens: a merged token keeps the place of its destination.

Keys are turned before they are compared, so tokens match by what attention will see. A token that
stands for several patches is turned by the angles of the one that the others merged into.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotary:
    """Angles for every input token, for all blocks or for each.

    Attributes:
        tables: one, or one per block: ``(N0, 1 or H, 2 * d)``, sines, then cosines. Rows of prefix
            tokens turn nothing.
        half: which channels turn together: i with i + d / 2, or neighbours.
    """

    tables: tuple[Tensor, ...]
    half: bool

    @property
    def biased(self) -> bool:
        """False: positions turn queries and keys."""
        return False

    def turn(self, x: Tensor, block: int, positions: Tensor) -> Tensor:
        """Turn queries or keys ``x (T, H, d)`` of tokens at input ``positions (T,)``; result in the dtype of ``x``."""
        table = self.tables[block if len(self.tables) > 1 else 0]
        sines, cosines = table[positions].chunk(2, dim=-1)
        return (x * cosines + _quarter_turn(x, self.half) * sines).to(x.dtype)

    def bias(self, block: int, positions: Tensor | None) -> None:
        """None: what is turned needs no bias."""


def make_rotary(tables: Tensor, prefix: int, half: bool) -> Rotary:
    """From timm's embeddings of patches, ``(N, 2 * d)``, or ``(depth, H, N, 2 * d)`` where blocks and heads differ."""
    per_block = tables[None, None] if tables.ndim == 2 else tables
    full = torch.cat([torch.cat(still_angles(per_block, prefix), dim=-1), per_block], dim=2)
    return Rotary(tuple(table.transpose(0, 1) for table in full), half)


def still_angles(tables: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Sines of 0 and cosines of 1, ``(depth, H, prefix, d)``."""
    shape = (*tables.shape[:2], prefix, tables.shape[-1] // 2)
    return tables.new_zeros(shape), tables.new_ones(shape)


def _quarter_turn(x: Tensor, half: bool) -> Tensor:
    """Each pair of channels ``(a, b)`` becomes ``(-b, a)``."""
    if half:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([-b, a], dim=-1)
    return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
