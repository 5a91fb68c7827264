"""The ways to merge that are compared, by the name under which their results are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

import tome_core
from research.ablations.bipartite import SoftBipartite, euclidean
from research.beyond.matching import ScoredPairs, half_squared_distance
from tome_core.attention import Attend, fused_attention
from tome_core.backends.reference import ReferenceStrategy
from tome_core.cost import Cost
from tome_core.execution import Strategy
from tome_core.matching import Matcher
from tome_core.merge import Combine, norm_preserving_mean
from tome_core.merging import RULES
from tome_core.metric import Metric, all_keys, mean_key


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
KEYS_DISTANCE = "keys-distance"

_NEAREST = ScoredPairs(half_squared_distance)

WAYS: dict[str, Way] = {
    PAPER: Way(
        "the paper's rule",
        RULES["paper"].matcher,
        RULES["paper"].metric,
        RULES["paper"].combine,
        comparisons=Comparisons(all_pairs=False, all_heads=False),
    ),
    PAIRS: Way("the rule of the core: cosine of the keys of all heads, all pairs"),
    KEYS_DISTANCE: Way("Euclidean distance of the keys of all heads, all pairs", _NEAREST),
    "keys-distance-bipartite": Way(
        "the same distance, between two alternating halves",
        SoftBipartite(similarity=euclidean),
        comparisons=Comparisons(all_pairs=False),
    ),
    "mean-key-distance": Way(
        "Euclidean distance of the mean keys, all pairs",
        _NEAREST,
        mean_key,
        comparisons=Comparisons(all_heads=False),
    ),
}
