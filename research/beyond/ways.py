"""The ways to merge that are compared, by the name under which their results are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

import tome_core
from research.ablations.bipartite import SoftBipartite, euclidean
from research.beyond.informed import (
    InformedStrategy,
    ReusingStrategy,
    attention_cost,
    protect,
    ward,
)
from research.beyond.matching import RoundedPairs
from research.beyond.metrics import keys_and_values, unit_keys
from tome_core.attention import Attend, fused_attention
from tome_core.backends.reference import ReferenceStrategy
from tome_core.cost import Cost
from tome_core.execution import Strategy
from tome_core.matching import Matcher
from tome_core.merge import Combine, norm_preserving_mean
from tome_core.merging import RULES
from tome_core.metric import Metric, all_keys, mean_key
from tome_core.pairs import Pairs, cosines, negative_distances


@dataclass(frozen=True)
class Comparisons:
    """Which tokens a way compares, for its share of the FLOPs.

    Attributes:
        all_pairs, all_heads: see `tome_core.cost.Cost`.
        widths: how many times as wide as keys is what it compares.
        every: it compares tokens in the first of so many blocks.
    """

    all_pairs: bool = True
    all_heads: bool = True
    widths: int = 1
    every: int = 1

    def of(self, cost: Cost) -> Cost:
        """Return the MAC count of a model that merges in this way."""
        blocks = []
        for index, block in enumerate(cost.blocks):
            compares = index % self.every == 0
            blocks.append(replace(block, match=block.match * self.widths * compares))
        return replace(
            cost, blocks=tuple(blocks), all_pairs=self.all_pairs, all_heads=self.all_heads
        )


@dataclass(frozen=True)
class Way:
    """One way to merge; the defaults are those of the rule "pairs".

    Attributes:
        note: what it is, for the report.
        strategy: makes what executes it, from the attention to use.
    """

    note: str
    matcher: Matcher = RULES["pairs"].matcher
    metric: Metric = all_keys
    combine: Combine = norm_preserving_mean
    strategy: Callable[[Attend], Strategy] = ReferenceStrategy
    comparisons: Comparisons = Comparisons()

    def patch(
        self, vit: nn.Module, prop_attn: bool = True, attend: Attend = fused_attention
    ) -> tome_core.MergedViT:
        """Return ``vit``, merging in this way, with PyTorch's operators."""
        model = tome_core.patch(vit, prop_attn=prop_attn)
        model.merging = replace(
            model.merging, matcher=self.matcher, metric=self.metric, combine=self.combine
        )
        model.execution = replace(model.execution, strategy=self.strategy(attend))
        return model


PAPER = "paper"
PAIRS = "pairs"
NEAREST = "nearest"

_NEAREST = Pairs(negative_distances)
_MOST_ALIKE = Pairs(cosines)
_WARD = partial(InformedStrategy, adjust=ward)
_ATTENTION_COST = partial(InformedStrategy, adjust=attention_cost)
_ATTENTION_WEIGHTS = partial(InformedStrategy, weigh_by_attention=True)
_PROTECTED_SHARES = (0.1, 0.25)
_REUSED = Comparisons(every=2)

WAYS: dict[str, Way] = {
    PAPER: Way(
        "the paper's rule",
        RULES["paper"].matcher,
        RULES["paper"].metric,
        RULES["paper"].combine,
        comparisons=Comparisons(all_pairs=False, all_heads=False),
    ),
    PAIRS: Way("the rule of the core: cosine of the keys of all heads, over all pairs"),
    NEAREST: Way("the same by Euclidean distance: the core's other rule", _NEAREST),
    "nearest-bipartite": Way(
        "the same distance, between two alternating halves",
        SoftBipartite(similarity=euclidean),
        comparisons=Comparisons(all_pairs=False),
    ),
    "mean-key-distance": Way(
        "Euclidean distance of the mean keys, over all pairs",
        _NEAREST,
        mean_key,
        comparisons=Comparisons(all_heads=False),
    ),
    "keys-cosine-per-head": Way(
        "mean over the heads of the cosine of their keys", metric=unit_keys
    ),
    "keys-values": Way(
        "cosine of keys and values side by side",
        metric=keys_and_values,
        comparisons=Comparisons(widths=2),
    ),
    "keys-values-distance": Way(
        "Euclidean distance of keys and values side by side",
        _NEAREST,
        keys_and_values,
        comparisons=Comparisons(widths=2),
    ),
    "nearest-ward": Way(
        "squared distance times a*b/(a+b) of the sizes (Ward)", _NEAREST, strategy=_WARD
    ),
    "nearest-attention-cost": Way(
        "squared distance times a*b/(a+b) of the class token's attention",
        _NEAREST,
        strategy=_ATTENTION_COST,
    ),
    "nearest-attention-weights": Way(
        "`nearest`, the mean weighted by size times the class token's attention",
        _NEAREST,
        strategy=_ATTENTION_WEIGHTS,
    ),
    "pairs-attention-weights": Way(
        "`pairs`, the mean weighted by size times the class token's attention",
        _MOST_ALIKE,
        strategy=_ATTENTION_WEIGHTS,
    ),
    **{
        f"{name}-protect-{share:.0%}".removesuffix("%"): Way(
            f"`{name}`, but the {share:.0%} of tokens with the most attention of the class token"
            " do not merge",
            matcher,
            strategy=partial(InformedStrategy, adjust=partial(protect, share=share)),
        )
        for name, matcher in ((PAIRS, _MOST_ALIKE), (NEAREST, _NEAREST))
        for share in _PROTECTED_SHARES
    },
    "pairs-reuse": Way(
        "`pairs`; every second block reuses the similarities of the block before",
        _MOST_ALIKE,
        strategy=ReusingStrategy,
        comparisons=_REUSED,
    ),
    "nearest-reuse": Way(
        "`nearest`; every second block reuses the distances of the block before",
        _NEAREST,
        strategy=ReusingStrategy,
        comparisons=_REUSED,
    ),
    "pairs-bfloat16": Way("`pairs`, keys rounded to bfloat16", RoundedPairs(cosines, rerank=False)),
    "pairs-bfloat16-reranked": Way(
        "the same, and the best r of the best 2r pairs by exact keys",
        RoundedPairs(cosines, rerank=True),
    ),
    "nearest-bfloat16": Way(
        "`nearest`, keys rounded to bfloat16",
        RoundedPairs(negative_distances, rerank=False),
    ),
    "nearest-bfloat16-reranked": Way(
        "the same, and the best r of the best 2r pairs by exact keys",
        RoundedPairs(negative_distances, rerank=True),
    ),
}
