"""The paper's baselines, each against a few lines of loops, and what all of them have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

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
from research.ablations.combining import drop, keep_one, maximum, plain_mean
from research.ablations.pruning import Prune, class_attention, random_score
from tests.tome_core import oracle
from tests.tome_core.oracle_layers import Vector
from tome_core import Bipartite, Matcher
from tome_core.matching import Matching
from tome_core.merge import weighted_mean
from tome_core.pairs import Pairs

MATCHERS: dict[str, Matcher] = {
    "cosine": SoftBipartite(),
    "euclidean": SoftBipartite(similarity=euclidean),
    "dot": SoftBipartite(similarity=dot),
    "sequential": SoftBipartite(partition=sequential),
    "shuffled": SoftBipartite(partition=shuffled),
    "energy": SoftBipartite(partition=by_energy),
    "ward": SoftBipartite(similarity=ward),
    "k-means": KMeans(2),
    "greedy": Pairs(),
    "random-pruning": Prune(random_score),
}
SEEDS = st.integers(0, 2**31)


def _metric(batch: int, tokens: int, seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, *(shape or (6,)), generator=generator, dtype=torch.float64)


def _pairs(matching: Matching, image: int = 0) -> set[tuple[int, int]]:
    """Which token merges into which, by old positions."""
    dest = matching.dest[image].tolist()
    merged = matching.merged[image].tolist()
    stays = {place: token for token, place in enumerate(dest) if not merged[token]}
    return {(token, stays[place]) for token, place in enumerate(dest) if merged[token]}


@pytest.mark.parametrize("name", MATCHERS)
@given(patches=st.integers(2, 20), prefix=st.integers(0, 3), r=st.integers(1, 12), seed=SEEDS)
def test_what_all_have_in_common(name: str, patches: int, prefix: int, r: int, seed: int) -> None:
    matcher = MATCHERS[name]
    metric = _metric(3, patches + prefix, seed)
    left = matcher.remaining(patches + prefix, r, prefix)
    assert left == Bipartite().remaining(patches + prefix, r, prefix)
    torch.manual_seed(seed)
    matching = matcher(metric, r, prefix)
    for dest, merged in zip(matching.dest.tolist(), matching.merged.tolist(), strict=True):
        assert dest[:prefix] == list(range(prefix)) and not any(merged[:prefix])
        assert min(dest[prefix:]) >= prefix
        # One token stays at each place, in the old order.
        stays = [place for place, gone in zip(dest, merged, strict=True) if not gone]
        assert stays == list(range(left)) and max(dest) < left
    torch.manual_seed(seed)
    again = matcher(metric, r, prefix)
    assert torch.equal(again.dest, matching.dest) and torch.equal(again.merged, matching.merged)
    assert hash(matcher) == hash(matcher) and matcher == matcher.__class__(**vars(matcher))


@given(st.integers(2, 20), st.integers(0, 3), st.integers(1, 12), SEEDS)
def test_bipartite_with_the_papers_choices_is_the_cores(
    patches: int, prefix: int, r: int, seed: int
) -> None:
    metric = _metric(2, patches + prefix, seed)
    ours = SoftBipartite()(metric, r, prefix)
    cores = Bipartite()(metric, r, prefix)
    for image in (0, 1):
        assert _pairs(ours, image) == _pairs(cores, image)


def _by_loops(
    rows: Sequence[Vector], a: list[int], b: list[int], r: int, near: Callable[..., float]
) -> set:
    edges = []
    for token in a:
        partner = max(b, key=lambda other: (near(rows[token], rows[other]), -other))
        edges.append((-near(rows[token], rows[partner]), token, partner))
    return {(token, partner) for _, token, partner in sorted(edges)[:r]}


@given(st.integers(2, 16), st.integers(0, 3), st.integers(1, 9), SEEDS)
def test_distances_equal_loops(patches: int, prefix: int, r: int, seed: int) -> None:
    metric = _metric(1, patches + prefix, seed)
    rows = list(metric[0].numpy())
    r = min(r, patches // 2)
    even = [token for token in range(prefix, patches + prefix) if token % 2 == 0]
    odd = [token for token in range(prefix, patches + prefix) if token % 2 == 1]
    by_dot = _by_loops(rows, even, odd, r, lambda x, y: float(x @ y))
    assert _pairs(SoftBipartite(similarity=dot)(metric, r, prefix)) == by_dot
    by_distance = _by_loops(rows, even, odd, r, lambda x, y: -math.dist(x, y))
    assert _pairs(SoftBipartite(similarity=euclidean)(metric, r, prefix)) == by_distance
    halves = (
        list(range(prefix, prefix + patches // 2)),
        list(range(prefix + patches // 2, prefix + patches)),
    )
    assert _pairs(SoftBipartite(partition=sequential)(metric, r, prefix)) == _by_loops(
        rows, *halves, r, oracle.cosine
    )


# Of two tokens alone, both have the same energy.
@given(st.integers(3, 16), st.integers(0, 3), st.integers(1, 9), SEEDS)
def test_ward_s_cost_and_sets_by_energy_equal_loops(
    patches: int, prefix: int, r: int, seed: int
) -> None:
    metric = _metric(1, patches + prefix, seed)
    rows = list(metric[0].numpy())
    r = min(r, patches // 2)

    def energy(token: int) -> float:
        return sum(oracle.cosine(rows[token], row) for row in rows[prefix:])

    order = sorted(range(prefix, patches + prefix), key=energy, reverse=True)
    assert _pairs(SoftBipartite(partition=by_energy)(metric, r, prefix)) == _by_loops(
        rows, order[1::2], order[::2], r, oracle.cosine
    )

    metric[..., -1] = metric[..., -1].abs() * 5 + 1  # sizes
    rows = list(metric[0].numpy())

    def less_cost(x: Vector, y: Vector) -> float:
        weight = float(x[-1] * y[-1] / (x[-1] + y[-1]))
        return -weight * (1 - oracle.cosine(x[:-1], y[:-1]))

    even = [token for token in range(prefix, patches + prefix) if token % 2 == 0]
    odd = [token for token in range(prefix, patches + prefix) if token % 2 == 1]
    by_cost = _by_loops(rows, even, odd, r, less_cost)
    assert _pairs(SoftBipartite(similarity=ward)(metric, r, prefix)) == by_cost


def test_what_the_class_token_attends_to_merges_last() -> None:
    metric = _metric(1, 17, 0, 2, 3, 4)  # queries and keys of 3 heads
    attention = class_attention(metric, 1)[0]
    protected = {1 + int(token) for token in attention.topk(4).indices}
    in_a = set(range(2, 17, 2))
    few = len(in_a - protected)
    merged = {token for token, _ in _pairs(Protected(0.25)(metric, few, 1))}
    assert merged == in_a - protected
    assert len(_pairs(Protected(0.25)(metric, 8, 1))) == 8  # then they merge, too
    keys = metric[:, :, 1].mean(dim=2)
    assert _pairs(Protected(0.0)(metric, 5, 1)) == _pairs(Bipartite()(keys, 5, 1))


def test_random_halves_differ_by_image_and_take_all_tokens() -> None:
    torch.manual_seed(0)
    in_a, in_b = shuffled(torch.zeros(200, 11, 4), 1)
    assert in_a.shape == (200, 5) and in_b.shape == (200, 5)
    assert torch.equal(
        torch.cat([in_a, in_b], dim=1).sort(dim=1).values, torch.arange(1, 11).expand(200, -1)
    )
    assert min(int((in_a == token).sum()) for token in range(1, 11)) > 50
    assert (
        int((in_a.unsqueeze(2) == in_a.unsqueeze(1) + 1).any(dim=2).sum()) > 0
    )  # neighbours in one set


@given(st.integers(2, 14), st.integers(0, 2), st.integers(1, 7), st.integers(0, 4), SEEDS)
def test_k_means_equals_loops(
    patches: int, prefix: int, r: int, iterations: int, seed: int
) -> None:
    metric = _metric(1, patches + prefix, seed)
    length = KMeans(1).remaining(patches + prefix, r, prefix) - prefix
    torch.manual_seed(seed)
    first = torch.rand(1, patches).argsort(dim=-1)[0, :length].tolist()
    rows = [row / np.linalg.norm(row) for row in metric[0, prefix:].numpy()]
    centres = [rows[token] for token in first]

    def nearest(row: Vector) -> int:
        return min(
            range(length), key=lambda centre: (round(math.dist(row, centres[centre]), 12), centre)
        )

    for _ in range(iterations):
        members = [[row for row in rows if nearest(row) == centre] for centre in range(length)]
        centres = [np.mean(m, axis=0) if m else centres[number] for number, m in enumerate(members)]
    groups = [
        [token for token in range(patches) if nearest(rows[token]) == centre]
        for centre in range(length)
    ]
    torch.manual_seed(seed)
    pairs = _pairs(KMeans(iterations)(metric, r, prefix))
    merged = {token - prefix: into - prefix for token, into in pairs}
    assert len(merged) == patches - length
    apart = {
        token: math.dist(rows[token], centres[number])
        for number, group in enumerate(groups)
        for token in group
    }
    extra = []
    for group in filter(None, groups):
        # They merge within their cluster, into one that is nearest to the centre (of two, both
        # are).
        stay = [token for token in group if token not in merged]
        chosen = {merged[token] for token in group if token in merged} or {
            min(stay, key=apart.__getitem__)
        }
        assert len(chosen) == 1 and chosen < {*stay, -1}
        assert apart[min(chosen)] <= min(apart[token] for token in group) + 1e-9
        extra += [apart[token] for token in stay if token not in chosen]
    # Where clusters are empty, as many others stay: the farthest from their centres.
    assert len(extra) == sum(not group for group in groups)
    assert not extra or min(extra) >= max((apart[token] for token in merged), default=0) - 1e-9


def test_equal_tokens_leave_clusters_empty_but_no_place() -> None:
    torch.manual_seed(0)
    matching = KMeans(3)(torch.ones(2, 13, 4, dtype=torch.float64), 4, 1)
    assert matching.dest.max() == 8 and (~matching.merged).sum(dim=1).tolist() == [9, 9]


@given(st.integers(2, 14), st.integers(1, 3), st.integers(1, 8), SEEDS)
def test_pruning_by_attention_equals_loops(patches: int, prefix: int, r: int, seed: int) -> None:
    metric = _metric(1, patches + prefix, seed, 2, 3, 4)  # queries and keys of 3 heads
    scores = np.zeros(patches + prefix)
    for head in range(3):
        query = metric[0, 0, 0, head].numpy()
        weights = [math.exp(float(query @ key) / 2) for key in metric[0, :, 1, head].numpy()]
        scores += np.array(weights) / sum(weights)
    pruned = sorted(range(prefix, patches + prefix), key=scores.__getitem__)[: min(r, patches // 2)]
    assert {token for token, _ in _pairs(Prune(class_attention)(metric, r, prefix))} == set(pruned)


def test_pruning_by_attention_needs_a_class_token() -> None:
    with pytest.raises(ValueError, match="class token"):
        Prune(class_attention)(_metric(1, 8, 0, 2, 3, 4), 2, 0)


def test_random_pruning_takes_any_token_but_the_prefix() -> None:
    torch.manual_seed(0)
    merged = Prune(random_score)(_metric(300, 9, 0), 2, 1).merged
    assert merged.sum(dim=1).tolist() == [2] * 300
    assert not merged[:, 0].any() and int(merged[:, 1:].sum(dim=0).min()) > 30


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_ways_to_combine_equal_loops(dtype: torch.dtype) -> None:
    x = _metric(2, 6, 0).to(dtype)
    sizes = torch.tensor([[1.0, 2, 1, 5, 3, 2], [1, 1, 4, 2, 1, 1]], dtype=torch.float64)
    partner = torch.tensor([[0, 3, 2, 3, 3, 2], [0, 1, 4, 1, 4, 5]])
    matching = Matching.into(partner)
    lengths = [3, 4]
    for image, length in enumerate(lengths):
        one = Matching(matching.dest[image : image + 1], matching.merged[image : image + 1])
        rows = x[image].double()
        row_sizes = sizes[image]
        stays = [token for token in range(6) if partner[image, token] == token]
        groups = [[token for token in range(6) if partner[image, token] == stay] for stay in stays]
        total = [float(sum(row_sizes[token] for token in group)) for group in groups]
        weighted: list[Any] = [
            sum(row_sizes[t] * rows[t] for t in group) / sum(row_sizes[t] for t in group)
            for group in groups
        ]
        expected: dict[Callable[..., Any], tuple[list[Tensor], list[float]]] = {
            weighted_mean: (weighted, total),
            plain_mean: ([rows[group].mean(dim=0) for group in groups], total),
            maximum: ([rows[group].amax(dim=0) for group in groups], total),
            keep_one: ([rows[stay] for stay in stays], total),
            drop: ([rows[stay] for stay in stays], row_sizes[stays].tolist()),
        }
        for combine, (values, after) in expected.items():
            tokens, combined = combine(x[image : image + 1], sizes[image : image + 1], one, length)
            assert tokens.dtype == dtype
            torch.testing.assert_close(tokens[0], torch.stack(values).to(dtype))
            assert combined[0].tolist() == after
