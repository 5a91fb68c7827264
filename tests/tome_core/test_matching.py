from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core import oracle
from tome_core import Bipartite, Kth, Matcher, Random
from tome_core.matching import Matching

LENGTHS = st.integers(2, 24)
PREFIXES = st.integers(0, 5)
SEEDS = st.integers(0, 2**31)


def _metric(batch: int, tokens: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn(
        batch, tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def _by_loops(metric: Tensor, matcher: Bipartite | Kth, r: int, prefix: int) -> list[list[int]]:
    maps = []
    for image in metric.numpy():
        rows = list(image)
        if isinstance(matcher, Kth):
            pairs, into = oracle.kth(rows, matcher.k, prefix)
        else:
            pairs, into = oracle.bipartite(rows, r, prefix)
        maps.append(oracle.dest_map(oracle.new_order(pairs, into, len(rows), prefix)))
    return maps


def _check_invariants(dest: Tensor, metric: Tensor, length: int, prefix: int) -> None:
    assert dest.dtype == torch.int64
    assert dest.shape == metric.shape[:2]
    for row in dest.tolist():
        assert row[:prefix] == list(range(prefix))
        assert set(row) == set(range(length))
        assert not set(row[:prefix]) & set(row[prefix:])


@given(LENGTHS, PREFIXES, st.integers(1, 14), SEEDS)
def test_bipartite_equals_the_oracle(patches: int, prefix: int, r: int, seed: int) -> None:
    metric = _metric(2, patches + prefix, seed)
    dest = Bipartite()(metric, r, prefix).dest
    assert dest.tolist() == _by_loops(metric, Bipartite(), r, prefix)
    _check_invariants(dest, metric, Bipartite().remaining(patches + prefix, r, prefix), prefix)


@given(LENGTHS, PREFIXES, st.integers(2, 6), SEEDS)
def test_kth_equals_the_oracle(patches: int, prefix: int, k: int, seed: int) -> None:
    metric = _metric(2, patches + prefix, seed)
    dest = Kth(k)(metric, 1, prefix).dest
    assert dest.tolist() == _by_loops(metric, Kth(k), 1, prefix)
    _check_invariants(dest, metric, Kth(k).remaining(patches + prefix, 1, prefix), prefix)


@given(LENGTHS, PREFIXES, st.integers(1, 14), SEEDS)
def test_random_merges_r_tokens_each_into_the_most_similar(
    patches: int, prefix: int, r: int, seed: int
) -> None:
    metric = _metric(2, patches + prefix, seed)
    length = Random().remaining(patches + prefix, r, prefix)
    assert length == patches + prefix - min(r, patches // 2)
    torch.manual_seed(seed)
    dest = Random()(metric, r, prefix).dest
    _check_invariants(dest, metric, length, prefix)
    for rows, row in zip(metric.numpy(), dest.tolist(), strict=True):
        # Tokens not drawn keep their order, so wherever several share a position, all but one must
        # have been drawn. Which one was not is found by trying: the drawn ones must all point to it
        # as their nearest.
        groups = [
            [token for token in range(len(row)) if row[token] == position]
            for position in range(length)
        ]
        kept = _kept_tokens(groups, list(rows), prefix)
        assert kept is not None


def _kept_tokens(
    groups: list[list[int]], rows: list[np.ndarray], prefix: int, chosen: tuple[int, ...] = ()
) -> object:
    """A choice of one kept token a group, in rising order, that explains all merges; None if there
    is no such choice.
    """
    if len(chosen) == len(groups):
        candidates = [token for token in chosen if token >= prefix]
        into = {token: kept for kept, group in zip(chosen, groups, strict=True) for token in group}
        drawn = [token for token in into if token not in chosen]
        return (
            chosen
            if all(oracle.best(rows, token, candidates)[1] == into[token] for token in drawn)
            else None
        )
    for token in groups[len(chosen)]:
        if not chosen or token > chosen[-1]:
            found = _kept_tokens(groups, rows, prefix, (*chosen, token))
            if found is not None:
                return found
    return None


def test_random_draws_anew_and_from_all() -> None:
    metric = _metric(400, 9, 0)
    torch.manual_seed(0)
    dest = Random()(metric, 1, 1).dest
    again = Random()(metric, 1, 1).dest
    assert not torch.equal(dest, again)
    # The token that moved ahead of nothing else is the drawn one or its partner; each patch must
    # take part at times.
    shared = (dest.unsqueeze(1) == dest.unsqueeze(2)).sum(dim=1) > 1
    assert shared[:, 0].sum() == 0
    assert bool((shared[:, 1:].sum(dim=0) > 20).all())


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_equal_tokens_merge_lowest_index_first(prefix: int) -> None:
    metric = torch.ones(1, prefix + 8, 4)
    for r in range(1, 5):
        assert Bipartite()(metric, r, prefix).dest.tolist() == _by_loops(
            metric, Bipartite(), r, prefix
        )
    first_a = prefix + prefix % 2
    first_b = prefix + 1 - prefix % 2
    dest = Bipartite()(metric, 2, prefix).dest[0].tolist()
    assert dest[first_a] == dest[first_a + 2] == dest[first_b]


def test_many_equal_tokens_merge_in_order_too() -> None:
    # An unstable sort keeps the order of a few equal numbers by chance, but not that of many.
    dest = Bipartite()(torch.ones(1, 401, 4), 50, 1).dest[0]
    # Position 0 is the prefix token, so B has the odd positions.
    assert dest[2:102:2].tolist() == [dest[1]] * 50
    assert dest[102::2].tolist() == list(range(1, 151))


@given(st.integers(2, 12), st.integers(0, 3), st.integers(1, 6), st.data())
def test_ties_are_broken_as_the_oracle_does(
    patches: int, prefix: int, r: int, data: st.DataObject
) -> None:
    # Unit vectors along axes have similarities of exactly 0 and 1, and so ties everywhere.
    axes = data.draw(
        st.lists(st.integers(0, 2), min_size=patches + prefix, max_size=patches + prefix)
    )
    metric = torch.nn.functional.one_hot(torch.tensor([axes]), 3).double()
    assert Bipartite()(metric, r, prefix).dest.tolist() == _by_loops(metric, Bipartite(), r, prefix)
    assert Kth(2)(metric, r, prefix).dest.tolist() == _by_loops(metric, Kth(2), r, prefix)


def test_similarity_is_the_cosine() -> None:
    # By dot product or distance, token 0 would go to the long token 1; by direction it belongs to
    # token 3.
    metric = torch.tensor([[[1.0, 0.0], [50.0, 50.0], [0.0, -1.0], [0.01, 0.0]]])
    assert Bipartite()(metric, 1, 0).dest.tolist() == [[2, 1, 0, 2]]


def test_zero_keys_are_no_error() -> None:
    metric = torch.zeros(1, 8, 4)
    dest = Bipartite()(metric, 3, 1).dest
    _check_invariants(dest, metric, 5, 1)


@pytest.mark.parametrize("matcher", [Bipartite(), Kth(3), Random()])
def test_nan_in_one_image_does_not_reach_others(matcher: Matcher) -> None:
    metric = _metric(2, 12, 0)
    broken = metric.clone()
    broken[0] = torch.nan
    torch.manual_seed(0)
    expected = matcher(metric, 3, 1).dest
    torch.manual_seed(0)
    dest = matcher(broken, 3, 1).dest
    assert torch.equal(dest[1], expected[1])
    # Out of range indices would be undefined behaviour on a GPU.
    assert int(dest.min()) >= 0 and int(dest.max()) < matcher.remaining(12, 3, 1)


@pytest.mark.parametrize("matcher", [Bipartite(), Kth(2), Random()])
def test_matching_has_no_gradient(matcher: Matcher) -> None:
    metric = _metric(1, 8, 0).requires_grad_()
    assert not matcher(metric, 2, 1).dest.requires_grad


@pytest.mark.parametrize(
    ("matcher", "tokens", "r", "prefix", "remaining"),
    [
        (Bipartite(), 197, 16, 1, 181),
        (Bipartite(), 197, 150, 1, 99),
        (Bipartite(), 1, 5, 1, 1),
        (Bipartite(), 2, 5, 1, 2),
        (Random(), 17, 50, 0, 9),
        (Kth(2), 197, 1, 1, 99),
        (Kth(3), 197, 1, 1, 1 + 65 + 1),
        (Kth(4), 4, 1, 1, 4),
    ],
)
def test_remaining_tokens_follow_from_shapes(
    matcher: Matcher, tokens: int, r: int, prefix: int, remaining: int
) -> None:
    assert matcher.remaining(tokens, r, prefix) == remaining


def test_kth_needs_at_least_two() -> None:
    for k in (1, 0, -2):
        with pytest.raises(ValueError, match="at least 2"):
            Kth(k)


def test_kth_with_fewer_tokens_than_k_does_nothing() -> None:
    assert Kth(5)(_metric(1, 4, 0), 1, 1).dest.tolist() == [[0, 1, 2, 3]]


@given(st.integers(1, 12), st.data())
def test_a_matching_from_partners(tokens: int, data: st.DataObject) -> None:
    stays = data.draw(st.sets(st.integers(0, tokens - 1), min_size=1).map(sorted))
    partner = [
        token if token in stays else data.draw(st.sampled_from(stays)) for token in range(tokens)
    ]
    matching = Matching.into(torch.tensor([partner]))
    assert matching.dest.tolist() == [[stays.index(token) for token in partner]]
    assert matching.merged.tolist() == [[token not in stays for token in range(tokens)]]


def test_matchers_are_values() -> None:
    # They are keys of the cache of plans.
    assert Kth(2) == Kth(2) and hash(Kth(2)) == hash(Kth(2))
    assert Kth(2) != Kth(3)
    assert len({Bipartite(), Bipartite(), Random(), Random(), Kth(2)}) == 3
