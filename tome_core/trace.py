"""What merging did to a batch: the tokens that are left, their sizes, and where each token went."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tome_core.merge import unmerge


@dataclass(frozen=True)
class Trace:
    """The result of `MergedViT.trace`.

    ``tokens`` and ``sizes`` are tensors if all images have equal token counts in every block, as
    with one schedule for the batch. Otherwise they are lists with one tensor per image.

    Attributes:
        logits: ``(B, classes)``, as `MergedViT.forward` returns them.
        tokens: what timm's ``forward_features`` returns, after the final norm: ``(B, N, D)``, or B
            times ``(N, D)``.
        sizes: patches in each token, 1 for a prefix token: ``(B, N)``, or B times ``(N,)``. The
            sizes of an image sum to N0.
        source: for every input token, prefix tokens included, the position of the token that
            contains it, int64 ``(B, N0)``.
    """

    logits: Tensor
    tokens: Tensor | list[Tensor]
    sizes: Tensor | list[Tensor]
    source: Tensor

    def unmerge(self) -> Tensor:
        """Return the final token of every input token, ``(B, N0, D)``. Differentiable."""
        if isinstance(self.tokens, Tensor):
            return unmerge(self.tokens, self.source)
        unmerged = []
        for tokens, source in zip(self.tokens, self.source, strict=True):
            unmerged.append(tokens[source])  # (N0, D)
        return torch.stack(unmerged)
