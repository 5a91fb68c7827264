"""Percentiles are nearest ranks, and a latency has them in milliseconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tome_load.latency import Latency, percentile


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.001, 100))
def test_a_percentile_is_the_smallest_value_that_enough_values_do_not_exceed(
    values: list[float], percent: float
) -> None:
    found = percentile(sorted(values), percent)
    enough = len(values) * percent / 100 * (1 - 1e-9)
    assert found in values
    assert sum(value <= found for value in values) >= enough - 1e-9
    assert sum(value < found for value in values) < enough + 1e-6


def test_ranks_are_exact() -> None:
    thousand = [float(number) for number in range(1, 1001)]
    assert [percentile(thousand, p) for p in (0.1, 50, 99, 99.9, 100)] == [1, 500, 990, 999, 1000]


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_a_percentile_needs_values_and_a_valid_rank(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentiles"):
        percentile(values, percent)


def test_latency_is_in_milliseconds() -> None:
    found = Latency.of([0.002, 0.001, 0.003])
    assert found is not None
    assert (found.count, found.mean, found.p50, found.p99, found.max) == (3, 2, 2, 3, 3)
    assert Latency.of([]) is None
