"""Positions that attention reads. A merged token has the position of its destination."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Positional(Protocol):
    """Rotates queries and keys by their positions, or adds a bias to the logits of each pair.

    ``positions`` are indices into the sequence that enters the first block, prefix tokens included.
    A `Rotary` or `RelativeBias` belongs to one call: it is computed from the current parameters and
    the size of the images.
    """

    @property
    def has_bias(self) -> bool:
        """Whether `bias` may return a tensor."""
        ...

    def rotate(
        self,
        x: Tensor,
        block: int,
        positions: Tensor,
    ) -> Tensor:
        """Rotate queries or keys, as attention and matching read them.

        Args:
            x: queries or keys ``(T, H, d)``.
            block: index of the block.
            positions: ``(T,)``.

        Returns:
            ``(T, H, d)`` in the dtype of ``x``.
        """
        ...

    def bias(self, block: int, positions: Tensor | None) -> Tensor | None:
        """Return what is added to the logits of each query and key, if anything.

        Args:
            block: index of the block.
            positions: ``(B, N)``; None while nothing is merged.

        Returns:
            ``(B or 1, H, N, N)``.
        """
        ...
