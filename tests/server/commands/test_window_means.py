"""Scores are averaged over the windows of a file, wherever batches divide them."""

from __future__ import annotations

import numpy as np
import pytest

from server.commands.window_means import WindowMeans


def test_without_files_there_is_no_hit() -> None:
    assert WindowMeans().hits() == 0


def test_an_image_has_one_window() -> None:
    means = WindowMeans()
    means.add(np.array([0, 1]), np.array([1, 1]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    means.add(np.array([2]), np.array([0]), np.array([[2.0, 1.0]]))
    assert means.hits() == 2


@pytest.mark.parametrize("size", range(1, 8))
def test_it_equals_the_mean_of_each_file(size: int) -> None:
    random = np.random.default_rng(size)
    items = np.repeat(np.arange(20), random.integers(1, 5, 20))
    labels = random.integers(0, 3, 20)[items]
    scores = random.random((len(items), 3))
    means = WindowMeans()
    for start in range(0, len(items), size):
        part = slice(start, start + size)
        means.add(items[part], labels[part], scores[part])
    right = [
        scores[items == item].mean(axis=0).argmax() == labels[items == item][0]
        for item in range(20)
    ]
    assert means.hits() == sum(right)
