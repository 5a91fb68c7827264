"""Relative positions of merged tokens: the bias of two tokens is that of the places of their destinations.

A key that stands for several patches gets one bias, that of the patch which the others merged into,
beside the ``log(size)`` of proportional attention; so tokens that are equal, and equally far from
all others, merge without loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RelativeBias:
    """A bias for every distance between two input tokens, for all blocks or for each.

    It is looked up for the tokens that are left, so nothing of the size of all pairs is kept for
    all blocks.

    Attributes:
        tables: one, or one per block: ``(H, distances)``.
        index: int64 ``(N0, N0)``, for query and key, the place of their distance in the tables.
    """

    tables: tuple[Tensor, ...]
    index: Tensor

    @property
    def biased(self) -> bool:
        """True: positions add to the logits."""
        return True

    def turn(self, x: Tensor, block: int, positions: Tensor) -> Tensor:
        """``x``, as it is."""
        return x

    def bias(self, block: int, positions: Tensor | None) -> Tensor:
        """``(B, H, N, N)`` for tokens at ``positions (B, N)``; ``(1, H, N, N)`` while nothing is merged: None."""
        table = self.tables[block if len(self.tables) > 1 else 0]
        if positions is None:
            return table[:, self.index][None]
        return table[:, self.index[positions[:, :, None], positions[:, None, :]]].transpose(0, 1)
