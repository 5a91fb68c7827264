"""The packed tokens of a batch, with their sizes and where they come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tome_core.merge import accumulation_dtype
from tome_core.ragged.plan import Plan, join


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
    """

    tokens: Tensor
    sizes: tuple[Tensor | None, ...]
    sources: tuple[Tensor, ...] | None
    positions: tuple[Tensor, ...] | None = None

    def flat_sizes(self, plan: Plan, index: int) -> Tensor | None:
        """Return the sizes of all tokens before block ``index`` merges, ``(T,)``.

        None while all sizes are 1.
        """
        if all(sizes is None for sizes in self.sizes):
            return None
        dtype = accumulation_dtype(self.tokens.dtype)
        device = self.tokens.device
        flat = []
        for group, sizes in zip(plan.groups, self.sizes, strict=True):
            if sizes is None:
                total = group.images * group.tokens[index]
                flat.append(torch.ones(total, dtype=dtype, device=device))
            else:
                flat.append(sizes.flatten())
        return join(flat)
