"""The confidence interval of an accuracy."""

from __future__ import annotations

import pytest

from server.commands.confidence import wilson_interval


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
