"""Ways to merge beyond the core's rules, each against a few lines of loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tome_core
from research.beyond.informed import (
    InformedStrategy,
    Known,
    ReusingStrategy,
    attention_cost,
    attention_weighted_mean,
    protect,
    ward,
)
from research.beyond.matching import RoundedPairs, symmetric
from research.beyond.metrics import keys_and_values, unit_keys
from research.beyond.ways import WAYS, Way
from tests.tome_core import oracle
from tests.tome_core.models import make_images, make_vit
from tome_core.matching import Matcher, Matching
from tome_core.metric import BlockTensors, all_keys
from tome_core.pairs import Pairs, cosines, negative_distances
from tome_core.rules import RuleName

SEEDS = st.integers(0, 2**31)
# How alike the tokens at two positions are.
Near = Callable[[int, int], float]


def random_metric(batch: int, tokens: int, seed: int, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, width, generator=generator, dtype=torch.float64)


def greedy(near: Near, r: int, prefix: int, tokens: int) -> list[tuple[int, int]]:
    """The nearest pair of all that are free, r times."""
    free = list(range(prefix, tokens))
    pairs = []
    for _ in range(min(r, len(free) // 2)):
        candidates = [(low, high) for low in free for high in free if low < high]
        pair = max(candidates, key=lambda pair: (near(*pair), -pair[0], -pair[1]))
        pairs.append(pair)
        free = [token for token in free if token not in pair]
    return pairs


def expected_map(near: Near, r: int, prefix: int, tokens: int) -> list[int]:
    pairs = greedy(near, r, prefix, tokens)
    return oracle.dest_map(oracle.same_order(pairs, tokens))


@given(st.integers(2, 16), st.integers(0, 2), st.integers(1, 9), SEEDS)
def test_reranking_equals_loops(patches: int, prefix: int, r: int, seed: int) -> None:
    metric = random_metric(1, patches + prefix, seed)
    exact = metric[0].numpy()
    rounded = metric[0].bfloat16().double().numpy()
    rough = greedy(
        lambda one, other: -math.dist(rounded[one], rounded[other]), 2 * r, prefix, len(exact)
    )
    rough.sort(key=lambda pair: math.dist(exact[pair[0]], exact[pair[1]]))
    expected = oracle.dest_map(oracle.same_order(rough[: min(r, patches // 2)], len(exact)))
    matcher = RoundedPairs(negative_distances, rerank=True)
    assert matcher(metric, r, prefix).dest.tolist() == [expected]
    # What bfloat16 has exactly is not rounded.
    exact_in_both = metric.bfloat16().double()
    plain = Pairs(negative_distances)(exact_in_both, r, prefix)
    for rerank in (False, True):
        again = RoundedPairs(negative_distances, rerank)(exact_in_both, r, prefix)
        assert torch.equal(again.dest, plain.dest)


def test_nan_is_the_lowest_score() -> None:
    metric = random_metric(1, 9, seed=0)
    metric[0, [2, 5]] = torch.nan
    scores = symmetric(metric @ metric.transpose(1, 2))
    assert not scores.isnan().any()
    finite = Pairs()(metric, 3, 1)
    assert finite.merged[0, [2, 5]].tolist() == [False, False]
    assert Pairs()(metric, 4, 1).merged.sum() == 4


def _known(patches: int, seed: int) -> Known:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 5, (1, patches), generator=generator).double()
    return Known(sizes, torch.rand(1, patches, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("adjust", [ward, attention_cost])
def test_costs_of_masses(adjust: Callable[[Tensor, Known], Tensor]) -> None:
    known = _known(7, seed=0)
    scores = negative_distances(random_metric(1, 7, seed=1))
    masses = (known.sizes if adjust is ward else known.attention)[0].tolist()
    costs = adjust(scores, known)
    for one in range(7):
        for other in range(7):
            factor = masses[one] * masses[other] / (masses[one] + masses[other])
            expected = float(scores[0, one, other]) * factor
            assert float(costs[0, one, other]) == pytest.approx(expected)


def test_protected_tokens_merge_only_where_no_others_are_left() -> None:
    known = _known(12, seed=0)
    metric = random_metric(1, 12, seed=1)
    scores = symmetric(protect(negative_distances(metric), known, share=0.25))
    most = set(known.attention[0].topk(3).indices.tolist())
    near = scores[0].tolist()
    few = greedy(lambda one, other: near[one][other], 4, 0, 12)
    assert not most & {token for pair in few for token in pair}
    assert len(greedy(lambda one, other: near[one][other], 6, 0, 12)) == 6


def test_per_head_cosines_are_averaged() -> None:
    keys = random_metric(5, 3, seed=0, width=4)  # (T, H, d)
    nothing = torch.empty(5, 12, dtype=torch.float64)
    features = BlockTensors(nothing, nothing, keys, keys, 2 * keys)
    by_product = cosines(unit_keys(features).unsqueeze(0))[0]
    for one, other in itertools.permutations(range(5), 2):
        heads = [oracle.cosine(keys[one, h].numpy(), keys[other, h].numpy()) for h in range(3)]
        assert float(by_product[one, other]) == pytest.approx(sum(heads) / 3)
    expected = torch.cat([keys.flatten(1), 2 * keys.flatten(1)], dim=1)
    assert torch.equal(keys_and_values(features), expected)


@pytest.mark.parametrize("name", WAYS)
def test_every_way_merges_exactly_r(name: str) -> None:
    model = WAYS[name].patch(make_vit(reg_tokens=1))
    trace = model.trace(make_images(3), r=[3, 3, 3])
    assert trace.logits.isfinite().all()
    assert isinstance(trace.tokens, Tensor)
    assert isinstance(trace.sizes, Tensor)
    assert trace.tokens.shape[1] == 18 - 9
    assert trace.sizes.sum(dim=1).tolist() == [18] * 3
    assert trace.sizes[:, :2].tolist() == [[1, 1]] * 3
    assert torch.equal(model(make_images(3), r=3), trace.logits)


@pytest.mark.parametrize("name", ["paper", "pairs"])
def test_the_cores_rules_are_the_cores_to_the_bit(name: RuleName) -> None:
    vit = make_vit()
    images = make_images(4)
    core = tome_core.patch(vit, merging=name)
    ours = WAYS[name].patch(vit)
    assert ours.merging == core.merging
    assert ours.merging.rule == name
    assert torch.equal(ours(images, r=3), core(images, r=3))
    assert WAYS[name].comparisons.of(tome_core.patch(vit).cost()) == core.cost()


def test_ways_differ() -> None:
    vit = make_vit(seed=1)
    images = make_images(8)
    logits: dict[str, Tensor] = {}
    for name, way in WAYS.items():
        logits[name] = way.patch(vit)(images, r=4)
    same = [
        (one, other)
        for one in logits
        for other in logits
        if one < other and torch.equal(logits[one], logits[other])
    ]
    # Rounded keys may well choose the same pairs.
    assert [pair for pair in same if "bfloat16" not in "".join(pair)] == []


def test_what_strategies_know_of_tokens() -> None:
    seen: list[tuple[Known, BlockTensors]] = []
    features_of_block: list[BlockTensors] = []

    def metric(features: BlockTensors) -> Tensor:
        features_of_block.append(features)
        return all_keys(features)

    def adjust(scores: Tensor, known: Known) -> Tensor:
        seen.append((known, features_of_block[-1]))
        return scores

    way = Way("", Pairs(), metric, strategy=partial(InformedStrategy, adjust=adjust))
    way.patch(make_vit()).trace(make_images(1), r=4)
    assert [known.sizes.shape[1] for known, _ in seen] == [16, 12, 8]
    for known, features in seen:
        assert known.sizes.sum() == 16
        sizes = [1.0, *known.sizes[0].tolist()]
        q, k = features.q.detach().numpy(), features.k.detach().numpy()
        attention = np.zeros(len(sizes))
        for head in range(q.shape[1]):
            scale = q.shape[2] ** -0.5
            weights = [
                size * math.exp(float(q[0, head] @ key) * scale)
                for size, key in zip(sizes, k[:, head], strict=True)
            ]
            attention += np.array(weights) / sum(weights) / q.shape[1]
        np.testing.assert_allclose(known.attention[0].numpy(), attention[1:], rtol=1e-5)


def test_means_weighted_by_attention_equal_loops() -> None:
    tokens = random_metric(1, 5, seed=0)
    sizes = torch.tensor([[1.0, 2, 3, 1, 1]], dtype=torch.float64)
    attention = torch.tensor([[0.1, 0.4, 0.1, 0.2, 0.2]], dtype=torch.float64)
    matching = Matching.into(torch.tensor([[0, 2, 2, 3, 4]]))
    combined, merged_sizes = attention_weighted_mean(attention, tokens, sizes, matching, 4)
    assert merged_sizes.tolist() == [[1, 5, 1, 1]]
    assert torch.equal(combined[0, [0, 2, 3]], tokens[0, [0, 3, 4]])
    mean = (0.8 * tokens[0, 1] + 0.3 * tokens[0, 2]) / 1.1
    length = (0.8 * tokens[0, 1].norm() + 0.3 * tokens[0, 2].norm()) / 1.1
    torch.testing.assert_close(combined[0, 1], mean / mean.norm() * length)


def test_reused_scores_equal_loops() -> None:
    computed: list[Tensor] = []

    def score(metric: Tensor) -> Tensor:
        computed.append(cosines(metric))
        return computed[-1]

    way = Way("", Pairs(score), strategy=ReusingStrategy)
    trace = way.patch(make_vit(depth=2)).trace(make_images(3), r=3)
    (scores,) = computed  # once for two blocks
    for image in range(3):
        near = scores[image]
        groups = oracle.same_order(greedy(partial(_entry, near), 3, 0, 16), 16)
        stay = [group[0] for group in groups]
        second = greedy(partial(_entry, near[stay][:, stay]), 3, 0, 13)
        first_map = oracle.dest_map(groups)
        second_map = oracle.dest_map(oracle.same_order(second, 13))
        expected = [0, *(1 + second_map[first_map[patch]] for patch in range(16))]
        assert trace.source[image].tolist() == expected


def _entry(scores: Tensor, one: int, other: int) -> float:
    return float(scores[one, other])


def test_scores_are_not_reused_across_a_block_that_does_not_merge() -> None:
    calls: list[int] = []

    def score(metric: Tensor) -> Tensor:
        calls.append(metric.shape[1])
        return cosines(metric)

    model = Way("", Pairs(score), strategy=ReusingStrategy).patch(make_vit(depth=4))
    images = make_images(2)
    model(images, r=tome_core.Schedule.per_layer([3, 0, 3, 3]))
    assert calls == [16, 13]
    model(images, r=tome_core.Schedule.per_layer([3, 0, 0, 3]))
    assert calls == [16, 13, 16, 13]


def test_matchers_can_be_compared() -> None:
    matchers: list[Matcher] = [way.matcher for way in WAYS.values()]
    for matcher in matchers:
        assert hash(matcher) == hash(matcher)
        assert matcher == matcher.__class__(**vars(matcher))
