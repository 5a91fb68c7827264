"""Cosines against those of torch, and how often the interval of their mean holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.commands.cosines import cosines, dense_cosines, mean_cosine, student_deviations


@given(st.integers(0, 2**32 - 1), st.sampled_from([(3, 4), (2, 3, 5)]))
def test_they_are_those_of_torch(seed: int, shape: tuple[int, ...]) -> None:
    first, second = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    expected = torch.cosine_similarity(torch.from_numpy(first), torch.from_numpy(second), dim=-1)
    assert cosines(first, second) == pytest.approx(expected.numpy(), abs=1e-6)


def test_a_vector_without_a_direction_equals_itself_alone() -> None:
    zero, other = np.zeros((1, 3)), np.ones((1, 3))
    assert cosines(zero, zero).tolist() == [1]
    assert cosines(zero, other).tolist() == [0]


def test_dense_features_count_each_patch_of_an_image_alike() -> None:
    exact = np.array([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 3.0]]])
    merged = np.array([[[2.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 3.0]]])
    assert dense_cosines(merged, exact).tolist() == [0.5, 1]


@pytest.mark.parametrize(
    ("freedom", "deviations"), [(4, 2.776), (9, 2.262), (29, 2.045), (499, 1.9647)]
)
def test_the_deviations_are_those_of_student(freedom: int, deviations: float) -> None:
    assert student_deviations(freedom) == pytest.approx(deviations, rel=0.01)


def test_where_nothing_changes_the_interval_ends_at_1() -> None:
    found = mean_cosine(np.ones(20))
    assert (found.low, found.mean, found.high) == (1, 1, 1)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_the_interval_encloses_the_mean_and_is_one_of_cosines(values: list[float]) -> None:
    found = mean_cosine(np.array(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert -1 <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= 1


def test_about_95_of_100_intervals_hold_for_cosines_that_are_close_to_1() -> None:
    """Of 500 images each; most cosines are near 1, and few far from it."""
    generator = np.random.default_rng(0)
    draws = 1 - 0.05 * generator.gamma(0.7, size=(400, 500))
    expected = 1 - 0.05 * 0.7
    held = [found.low <= expected <= found.high for found in map(mean_cosine, draws)]
    assert np.mean(held) >= 0.93
