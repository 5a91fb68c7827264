from __future__ import annotations

import pytest

from tome_core.split import most_mergeable, set_sizes, split


def test_half_of_the_mergeable_tokens_may_merge() -> None:
    assert [most_mergeable(tokens, 1) for tokens in range(1, 7)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("tokens", [5, 6, 9])
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_a_has_the_even_positions_and_b_the_odd_ones(tokens: int, prefix: int) -> None:
    positions = range(tokens)
    in_a, in_b = split(prefix)
    even = [position for position in positions[prefix:] if position % 2 == 0]
    odd = [position for position in positions[prefix:] if position % 2 == 1]
    assert list(positions[in_a]) == even
    assert list(positions[in_b]) == odd
    assert set_sizes(tokens, prefix) == (len(even), len(odd))
