"""Speeds are of full batches."""

from __future__ import annotations

import pytest

from server.commands.speeds import full_batches, images_per_second, in_turn, speedups


def test_each_batch_begins_with_another_one() -> None:
    assert [in_turn("abc", number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


@pytest.mark.parametrize(
    ("sizes", "full"), [([4, 4, 1], [0, 1]), ([4, 4], [0, 1]), ([3], [0]), ([4, 1, 4], [0, 2])]
)
def test_a_batch_that_is_not_full_does_not_count(sizes: list[int], full: list[int]) -> None:
    assert full_batches(sizes) == full


def test_a_speed_is_the_median_of_full_batches() -> None:
    sizes = [4, 4, 4, 1]
    before = [0.4, 0.5, 0.9, 9.0]
    after = [0.2, 0.25, 0.9, 0.001]
    assert images_per_second(sizes, after) == pytest.approx(4)
    assert speedups(sizes, before, after) == pytest.approx([2, 2, 1])
