"""Positions that attention itself reads, and that a merged token must therefore keep one of: its destination's."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Positional(Protocol):
    """Turns queries and keys by where their tokens are, or adds to the logits of each pair of them.

    ``positions`` are places in the sequence that entered the first block, prefix tokens counted.
    What a `Rotary` or a `RelativeBias` holds was made for one call, so it follows the parameters
    and the size of the images.
    """

    @property
    def biased(self) -> bool:
        """Whether `bias` gives any."""
        ...

    def turn(self, x: Tensor, block: int, positions: Tensor) -> Tensor:
        """Queries or keys ``x (T, H, d)`` of tokens at ``positions (T,)``, as attention and matching will see them."""
        ...

    def bias(self, block: int, positions: Tensor | None) -> Tensor | None:
        """What the tokens of images, at ``positions (B, N)``, add to their logits: ``(B or 1, H, N, N)``, or None.

        ``positions`` are None while nothing is merged.
        """
        ...
