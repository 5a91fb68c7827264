"""The best classes by the mean scores of windows."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from server.media.window_scores import best_classes


class Found(NamedTuple):
    """One window's classes, best first."""

    classes: tuple[int, ...]
    scores: tuple[float, ...]


def test_scores_are_averaged_by_class() -> None:
    windows = [Found((2, 0, 1), (0.6, 0.3, 0.1)), Found((0, 1, 2), (0.8, 0.2, 0.0))]
    classes, scores = best_classes(windows, 2)
    assert classes == (0, 2)
    assert scores == pytest.approx((0.55, 0.3))


def test_of_equal_means_the_first_class_is_best() -> None:
    windows = [Found((1, 0), (0.75, 0.25)), Found((0, 1), (0.75, 0.25))]
    assert best_classes(windows, 1) == ((0,), (0.5,))


def test_one_window_has_its_own_scores() -> None:
    assert best_classes([Found((2, 0, 1), (0.6, 0.3, 0.1))], 2) == ((2, 0), (0.6, 0.3))
