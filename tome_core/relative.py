"""Relative positions of merged tokens: the bias of two tokens is that of their destinations.

A key of several patches gets one bias, that of the patch into which the others merged. Proportional
attention adds ``log(size)`` to it. So tokens that are equal, and have equal distances from all
others, merge without loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RelativeBias:
    """A bias for every distance between two input tokens, for all blocks or for each.

    Each block looks up the bias of the tokens that are left, so that no block stores the bias of
    all pairs.

    Attributes:
        tables: one, or one per block: ``(H, distances)``.
        index: for query and key, the column of their distance in the tables, int64 ``(N0, N0)``.
    """

    tables: tuple[Tensor, ...]
    index: Tensor

    @property
    def has_bias(self) -> bool:
        """True: positions add to the logits."""
        return True

    def rotate(
        self,
        x: Tensor,
        block: int,
        positions: Tensor,
    ) -> Tensor:
        """Return ``x`` as it is."""
        return x

    def bias(self, block: int, positions: Tensor | None) -> Tensor:
        """Return the bias of each query and key.

        Args:
            block: index of the block.
            positions: ``(B, N)``; None while nothing is merged.

        Returns:
            ``(B, H, N, N)``, or ``(1, H, N0, N0)`` while nothing is merged.
        """
        table = self.tables[0]
        if len(self.tables) > 1:
            table = self.tables[block]
        if positions is None:
            return table[:, self.index][None]
        queries = positions[:, :, None]  # (B, N, 1)
        keys = positions[:, None, :]  # (B, 1, N)
        columns = self.index[queries, keys]  # (B, N, N)
        return table[:, columns].transpose(0, 1)
