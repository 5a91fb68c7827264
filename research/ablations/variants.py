"""The variants that are compared, by the name under which their results are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import nn

import tome_core
from research.ablations import combining, metrics
from research.ablations.bipartite import (
    Protected,
    SoftBipartite,
    by_energy,
    dot,
    euclidean,
    sequential,
    shuffled,
    ward,
)
from research.ablations.clustering import KMeans
from research.ablations.pruning import Prune, class_attention, random_score
from research.bench import Shape
from tome_core.matching import Bipartite, Kth, Matcher, Random
from tome_core.merge import Combine, norm_preserving_mean, weighted_mean
from tome_core.metric import Metric, all_keys, mean_key
from tome_core.pairs import Pairs, negative_distances
from tome_core.schedule import Schedule

# The r asked for, and the model that it is for.
Schedules = Callable[[int, Shape], Schedule]


def constant(r: int, shape: Shape) -> Schedule:
    """``r`` in every block."""
    return Schedule.constant(r)


def unmerged(r: int, shape: Shape) -> Schedule:
    """Nothing merges."""
    return Schedule.constant(0)


def decreasing(r: int, shape: Shape) -> Schedule:
    """From 2r down to 0."""
    return Schedule.linear(r, inflection=-1)


def increasing(r: int, shape: Shape) -> Schedule:
    """From 0 up to 2r."""
    return Schedule.linear(r, inflection=1)


def late(r: int, shape: Shape) -> Schedule:
    """Nothing in the first half of the blocks, 2r in each of the second."""
    half = shape.depth // 2
    return Schedule.per_layer([0] * (shape.depth - half) + [2 * r] * half)


def halving(r: int, shape: Shape) -> Schedule:
    """Schedule for ``Kth(2)``, which halves or does nothing: closest to a constant ``r``."""
    counts = []
    now = shape.tokens
    for target in Schedule.constant(r).tokens(shape.depth, shape.tokens, shape.prefix)[1:]:
        halved = Kth(2).remaining(now, 1, shape.prefix)
        counts.append(int(abs(halved - target) < abs(now - target)))
        now = halved if counts[-1] else now
    return Schedule.per_layer(counts)


@dataclass(frozen=True)
class Variant:
    """One way to merge; the defaults are the paper's."""

    matcher: Matcher = field(default_factory=Bipartite)
    metric: Metric = mean_key
    combine: Combine = weighted_mean
    prop_attn: bool = True
    schedule: Schedules = constant

    def patch(self, vit: nn.Module) -> tome_core.MergedViT:
        """``vit``, merging in this way."""
        model = tome_core.patch(vit, prop_attn=self.prop_attn, matcher=self.matcher)
        model.merging = replace(model.merging, metric=self.metric, combine=self.combine)
        return model


DEFAULT = "default"
UNMERGED = "unmerged"

VARIANTS: dict[str, Variant] = {
    UNMERGED: Variant(schedule=unmerged),
    DEFAULT: Variant(),
    "feature-x-pre": Variant(metric=metrics.token_before),
    "feature-x": Variant(metric=metrics.token_after),
    "feature-q": Variant(metric=metrics.mean_query),
    "feature-v": Variant(metric=metrics.mean_value),
    "feature-all-heads": Variant(metric=all_keys),
    "distance-euclidean": Variant(SoftBipartite(similarity=euclidean)),
    "distance-dot": Variant(SoftBipartite(similarity=dot)),
    "combine-keep-one": Variant(combine=combining.keep_one),
    "combine-max": Variant(combine=combining.maximum),
    "combine-mean": Variant(combine=combining.plain_mean),
    "partition-sequential": Variant(SoftBipartite(partition=sequential)),
    "partition-random": Variant(SoftBipartite(partition=shuffled)),
    "prop-attn-off": Variant(prop_attn=False),
    "prune-random": Variant(Prune(random_score), combine=combining.drop),
    "prune-attention": Variant(Prune(class_attention), metrics.queries_and_keys, combining.drop),
    "k-means-2": Variant(KMeans(2)),
    "k-means-5": Variant(KMeans(5)),
    "greedy": Variant(Pairs()),
    "random-matching": Variant(Random()),
    "kth": Variant(Kth(2), schedule=halving),
    "schedule-decreasing": Variant(schedule=decreasing),
    "schedule-increasing": Variant(schedule=increasing),
    "pairs": Variant(Pairs(), all_keys, norm_preserving_mean),
    "pairs-all-keys": Variant(Pairs(), all_keys),
    "nearest": Variant(Pairs(negative_distances), all_keys, norm_preserving_mean),
    "feature-qkv": Variant(metric=metrics.all_queries_keys_and_values),
    "partition-energy": Variant(SoftBipartite(partition=by_energy)),
    "size-cost": Variant(SoftBipartite(similarity=ward), metrics.keys_and_sizes),
    "attention-protected": Variant(Protected(0.25), metrics.queries_and_keys),
    "schedule-late": Variant(schedule=late),
}
