"""What merging is, whatever executes it: which tokens merge, compared by what, and into what."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tome_core.matching import Bipartite, Matcher
from tome_core.merge import Combine, norm_preserving_mean, weighted_mean
from tome_core.metric import Metric, all_keys, mean_key
from tome_core.pairs import Pairs, negative_distances
from tome_core.rules import RuleName


@dataclass(frozen=True)
class Rule:
    """Which tokens merge, and into what.

    Attributes:
        matcher: chooses which tokens merge.
        metric: describes the tokens to ``matcher``.
        combine: makes one token of all tokens with the same destination.
    """

    matcher: Matcher
    metric: Metric
    combine: Combine


RULES: dict[RuleName, Rule] = {
    "paper": Rule(Bipartite(), mean_key, weighted_mean),
    "pairs": Rule(Pairs(), all_keys, norm_preserving_mean),
    "nearest": Rule(Pairs(negative_distances), all_keys, norm_preserving_mean),
}


@dataclass(frozen=True)
class Merging:
    """How a model merges: fixed when it is patched, and the same for all its blocks.

    Attributes:
        matcher: chooses which tokens merge.
        prop_attn: whether attention counts a token once for each of its patches.
        prefix: number of prefix tokens, which never merge.
        metric: describes the tokens to ``matcher``.
        combine: makes one token of all tokens with the same destination.
    """

    matcher: Matcher
    prop_attn: bool
    prefix: int
    metric: Metric = mean_key
    combine: Combine = weighted_mean

    def with_rule(self, name: RuleName) -> Merging:
        """Return the same with another rule."""
        rule = RULES[name]
        return replace(self, matcher=rule.matcher, metric=rule.metric, combine=rule.combine)

    @property
    def rule(self) -> RuleName | None:
        """The name of the rule of `RULES` that it follows; None if it is none of them."""
        own = Rule(self.matcher, self.metric, self.combine)
        return next((name for name, rule in RULES.items() if rule == own), None)
