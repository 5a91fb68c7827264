"""Intervals and bounds of a share."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.commands.proportions import lower_bound, upper_bound, wilson_interval


@pytest.mark.parametrize(
    ("hits", "count", "expected"),
    [
        (81, 263, (0.2553, 0.3662)),  # Newcombe, Statistics in Medicine 17 (1998), table I
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_it_is_wilsons_as_published(hits: int, count: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(hits, count) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (3, 3), (50, 100), (9_089, 10_000)])
def test_it_holds_the_share_and_is_mirrored_for_the_misses(hits: int, count: int) -> None:
    low, high = wilson_interval(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    assert wilson_interval(count - hits, count) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(
    ("hits", "count", "bound"),
    [
        # No hit in n: 1 - 0.05^(1/n).
        (0, 1, 0.95),
        (0, 10, 1 - 0.05**0.1),
        (0, 3000, 1 - 0.05 ** (1 / 3000)),
        # Tables of Clopper and Pearson's one-sided bound.
        (1, 10, 0.3942),
        (5, 10, 0.7776),
        (10, 10, 1.0),
    ],
)
def test_a_bound_is_that_of_clopper_and_pearson(hits: int, count: int, bound: float) -> None:
    assert upper_bound(hits, count) == pytest.approx(bound, abs=1e-4)


@pytest.mark.parametrize(("hits", "count"), [(0, 50), (3, 50), (20, 40)])
def test_at_the_bound_so_few_hits_have_a_probability_of_a_twentieth(hits: int, count: int) -> None:
    share = upper_bound(hits, count)
    terms = (
        math.comb(count, number) * share**number * (1 - share) ** (count - number)
        for number in range(hits + 1)
    )
    assert sum(terms) == pytest.approx(0.05)


@given(st.integers(1, 300), st.floats(0, 1))
def test_the_bounds_mirror_each_other_and_enclose_the_share(count: int, share: float) -> None:
    hits = round(share * count)
    low, high = lower_bound(hits, count), upper_bound(hits, count)
    assert low <= hits / count <= high
    assert low == pytest.approx(1 - upper_bound(count - hits, count), abs=1e-9)
