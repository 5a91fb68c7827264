"""What merging did to a batch: the tokens that are left, their sizes, and where each token went."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tome_core.merge import accumulation_dtype, unmerge
from tome_core.ragged.context import BlockContext


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
        unmerged: the final vector of every input token with residuals (`tome_core.residuals`),
            after the final norm, ``(B, N0, D)``; None if the call did not request it.
    """

    logits: Tensor
    tokens: Tensor | list[Tensor]
    sizes: Tensor | list[Tensor]
    source: Tensor
    unmerged: Tensor | None = None

    def unmerge(self) -> Tensor:
        """Return the final token of every input token, ``(B, N0, D)``. Differentiable.

        If the call requested residuals, they are part of it.
        """
        if self.unmerged is not None:
            return self.unmerged
        if isinstance(self.tokens, Tensor):
            return unmerge(self.tokens, self.source)
        unmerged = []
        for tokens, source in zip(self.tokens, self.source, strict=True):
            unmerged.append(tokens[source])  # (N0, D)
        return torch.stack(unmerged)


def make_trace(
    context: BlockContext,
    logits: Tensor,
    unmerged: Tensor | None,
) -> Trace:
    """Return the trace of a batch.

    Args:
        context: the tokens after the last block and the final norm, with their sources.
        logits, unmerged: see `Trace`.
    """
    plan = context.plan
    packed = context.packed
    tokens = []
    sizes = []
    for (_, group_tokens), group_sizes in zip(
        context.views(packed.tokens), packed.sizes, strict=True
    ):
        tokens.append(group_tokens)
        sizes.append(_sizes_or_ones(group_sizes, group_tokens))
    return Trace(
        logits=logits,
        tokens=plan.by_image(tokens),
        sizes=plan.by_image(sizes),
        source=batch_source(context),
        unmerged=unmerged,
    )


def batch_source(context: BlockContext) -> Tensor:
    """Return where each input token is now, ``(B, N0)``, in the order of the batch."""
    sources = torch.cat(context.packed.sources or ())  # (B, N0)
    return context.plan.restore(sources)


def _sizes_or_ones(sizes: Tensor | None, tokens: Tensor) -> Tensor:
    if sizes is not None:
        return sizes
    dtype = accumulation_dtype(tokens.dtype)
    return torch.ones(tokens.shape[:2], dtype=dtype, device=tokens.device)
