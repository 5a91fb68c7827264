"""The packed tokens of a batch, and how a model merges them: data that the whole core shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tome_core.attention import Attend, fused_attention
from tome_core.matching import Bipartite, Matcher
from tome_core.merge import Combine, accumulation_dtype, weighted_mean
from tome_core.metric import BlockTensors, Metric, mean_key
from tome_core.positional import Positional
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


class Strategy(Protocol):
    """The parts of a block that separate images: attention and merging in a packed buffer."""

    def attend(
        self,
        merging: Merging,
        plan: Plan,
        index: int,
        packed: Packed,
        qkv: tuple[Tensor, Tensor, Tensor],
        positional: Positional | None,
        dropout: float,
    ) -> Tensor:
        """Compute the attention of block ``index`` within each image.

        Args:
            merging: how the model merges.
            plan: the groups of the batch.
            index: index of the block.
            packed: the tokens that enter the block.
            qkv: queries, keys and values, each ``(T, H, d)``.
            positional: positions that attention reads, if any.
            dropout: probability of dropping an attention weight.

        Returns:
            ``(T, H * d)``.
        """
        ...

    def merge(
        self,
        merging: Merging,
        plan: Plan,
        index: int,
        packed: Packed,
        features: BlockTensors,
    ) -> Packed:
        """Merge the tokens of every image as its schedule requests for block ``index``."""
        ...


@dataclass(frozen=True)
class Merging:
    """How a model merges: fixed when it is patched, and the same for all its blocks.

    Attributes:
        matcher: chooses which tokens merge.
        prop_attn: whether attention counts a token once for each of its patches.
        prefix: number of prefix tokens, which never merge.
        strategy: attends and merges in a packed buffer.
        dense_attention: attention over images of one length, for strategies that call it.
        metric: describes the tokens to ``matcher``.
        combine: makes one token of all tokens with the same destination.
        in_place: add tokens to the output of a branch in place. Must be False if hooks may have
            stored that output, or if gradients need it.
        prune: if the head reads only prefix tokens, compute only these in the last block after
            attention. Layers that round differently for fewer rows then give other last bits.
    """

    matcher: Matcher
    prop_attn: bool
    prefix: int
    strategy: Strategy
    dense_attention: Attend = field(default=fused_attention)
    metric: Metric = mean_key
    combine: Combine = weighted_mean
    in_place: bool = False
    prune: bool = False

    @property
    def follows_paper(self) -> bool:
        """Whether matching and merging are those of the paper, which all kernels implement."""
        return (
            self.metric is mean_key
            and self.combine is weighted_mean
            and self.matcher == Bipartite()
        )
