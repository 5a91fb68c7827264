"""What travels between blocks, and what a model merges by: plain data that all of the core shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tome_core.attention import Attend, fused_attention
from tome_core.matching import Bipartite, Matcher
from tome_core.merge import Combine, accumulation_dtype, weighted_mean
from tome_core.metric import Features, Metric, mean_key
from tome_core.positional import Positional
from tome_core.ragged.plan import Plan, join


@dataclass(frozen=True)
class Packed:
    """All tokens of a batch between two blocks; travels through the call, never lives on the model.

    Attributes:
        tokens: ``(T, D)``.
        sizes: for each group, how many patches each token stands for, ``(images, tokens)``; None
            while all are 1.
        sources: for each group, where each input token is now, ``(images, N0)``; None where nobody
            asked.
        positions: for each group, the input position that each token keeps, ``(images, tokens)``;
            None where attention reads none.
    """

    tokens: Tensor
    sizes: tuple[Tensor | None, ...]
    sources: tuple[Tensor, ...] | None
    positions: tuple[Tensor, ...] | None = None

    def flat_sizes(self, plan: Plan, index: int) -> Tensor | None:
        """Sizes of all tokens of the buffer before block ``index`` merges, ``(T,)``; None while all are 1."""
        if all(sizes is None for sizes in self.sizes):
            return None
        dtype = accumulation_dtype(self.tokens.dtype)
        device = self.tokens.device
        return join(
            [
                (
                    torch.ones(group.images * group.tokens[index], dtype=dtype, device=device)
                    if sizes is None
                    else sizes.flatten()
                )
                for group, sizes in zip(plan.groups, self.sizes, strict=True)
            ]
        )


class Strategy(Protocol):
    """The parts of a block that see images: how a packed buffer of several groups attends and merges."""

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
        """Attention of block ``index``, within each image: ``q, k, v (T, H, d)`` -> ``(T, H * d)``."""
        ...

    def merge(
        self, merging: Merging, plan: Plan, index: int, packed: Packed, features: Features
    ) -> Packed:
        """Merge every image's tokens as far as its schedule says for block ``index``."""
        ...


@dataclass(frozen=True)
class Merging:
    """What a model merges by: fixed when it is patched, shared by all its blocks.

    Attributes:
        strategy: how the tokens of several images in one buffer attend and merge.
        attend: attention over images of one length, where the strategy takes them so.
        metric: what of the tokens ``matcher`` is given.
        combine: how the tokens of one destination become one.
        in_place: add a branch to its tokens where it lies; not where hooks may have kept it, or
            gradients need it.
        prune: where the head reads prefix tokens alone, the last block goes on with these once it
            has attended. Layers that round otherwise for fewer rows give other last bits then.
    """

    matcher: Matcher
    prop_attn: bool
    prefix: int
    strategy: Strategy
    attend: Attend = field(default=fused_attention)
    metric: Metric = mean_key
    combine: Combine = weighted_mean
    in_place: bool = False
    prune: bool = False

    @property
    def is_papers(self) -> bool:
        """Whether it matches and merges as the paper does, which is what kernels know."""
        papers = self.metric is mean_key and self.combine is weighted_mean
        return papers and self.matcher == Bipartite()
