"""The packed tokens of a batch, with their sizes and where they come from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """All tokens of a batch between two blocks. It belongs to one call, never to the model.

    Attributes:
        tokens: ``(T, D)``.
        sizes: for each group, the number of patches in each token, ``(images, tokens)``; None while
            all sizes are 1.
        sources: for each group, the current position of each input token, ``(images, N0)``; None if
            the call does not need them.
        positions: for each group, the input position that each token has for attention,
            ``(images, tokens)``; None if attention reads no positions.
        residuals: for each group, what merging has taken from each input token so far
            (`tome_core.residuals`), ``(images, N0, D)``, None while the group has merged nothing;
            None if the call does not record them.
    """

    tokens: Tensor
    sizes: tuple[Tensor | None, ...]
    sources: tuple[Tensor, ...] | None
    positions: tuple[Tensor, ...] | None = None
    residuals: tuple[Tensor | None, ...] | None = None
