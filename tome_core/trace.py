"""What merging did to a batch: the tokens that are left, how many patches each stands for, and where all went."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tome_core.merge import unmerge


@dataclass(frozen=True)
class Trace:
    """The result of `MergedViT.trace`.

    Where all images have the same number of tokens in every block, as with one schedule for the
    batch, ``tokens`` and ``sizes`` are tensors; else they are lists, one an image.

    Attributes:
        logits: ``(B, classes)``, as a plain call gives them.
        tokens: what timm's ``forward_features`` returns, after the final norm: ``(B, N, D)`` or B
            times ``(N, D)``.
        sizes: patches in each token, 1 for a prefix token: ``(B, N)`` or B times ``(N,)``; they sum
            to N0.
        source: int64 ``(B, N0)``, for every input token, prefix included, the position of the token
            it ended in.
    """

    logits: Tensor
    tokens: Tensor | list[Tensor]
    sizes: Tensor | list[Tensor]
    source: Tensor

    def unmerge(self) -> Tensor:
        """``(B, N0, D)``: every input token, in its old place, with its final token's value. Differentiable."""
        if isinstance(self.tokens, Tensor):
            return unmerge(self.tokens, self.source)
        return torch.stack(
            [tokens[source] for tokens, source in zip(self.tokens, self.source, strict=True)]
        )
