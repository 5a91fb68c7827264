"""Recall of nearest neighbours against one that sorts all cosines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from server.commands import neighbours
from server.commands.neighbours import NeighbourRecall

Features = npt.NDArray[np.float64]


def sorted_neighbours(features: Features, count: int) -> list[set[int]]:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    return [set(row[:count].tolist()) for row in np.argsort(-cosines, axis=1)]


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3, 3.0])
def test_it_is_the_share_of_the_neighbours_that_stay(noise: float) -> None:
    generator = np.random.default_rng(1)
    exact = generator.normal(size=(300, 8))
    changed = exact + noise * generator.normal(size=exact.shape)
    found = NeighbourRecall(exact).of(changed)
    for count in (1, 10):
        before, after = sorted_neighbours(exact, count), sorted_neighbours(changed, count)
        shares = [len(one & other) / count for one, other in zip(before, after, strict=True)]
        assert found[count] == pytest.approx(np.mean(shares), abs=1e-9)


def test_a_mixture_has_half_of_the_features_of_r0() -> None:
    generator = np.random.default_rng(2)
    exact = generator.normal(size=(200, 8))
    recall = NeighbourRecall(exact)
    assert recall.of_mixture(exact) == recall.of(exact) == {1: 1, 10: 1}
    # All features turn alike: among themselves nothing changes, among others everything.
    turned = -exact
    assert recall.of(turned) == {1: 1, 10: 1}
    assert recall.of_mixture(turned)[10] < 0.7


def test_it_does_not_matter_which_of_several_copies_is_found() -> None:
    generator = np.random.default_rng(3)
    exact = np.repeat(generator.normal(size=(20, 6)), 15, axis=0)
    order = generator.permutation(len(exact))
    rounded = exact[order] * (1 + 1e-7 * generator.normal(size=exact.shape))
    assert NeighbourRecall(exact[order]).of(rounded) == {1: 1, 10: 1}


def test_of_few_images_all_others_are_neighbours() -> None:
    for images, counts in ((1, []), (2, []), (3, [1]), (11, [1]), (12, [1, 10])):
        features = np.random.default_rng(4).normal(size=(images, 4))
        assert list(NeighbourRecall(features).of(features)) == counts


def test_features_without_a_direction_are_near_nothing() -> None:
    features = np.random.default_rng(5).normal(size=(30, 4))
    features[3] = 0
    found = NeighbourRecall(features).of(features)
    assert found == {1: 1, 10: 1}


def test_of_many_images_some_look_for_neighbours_among_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(6)
    exact = generator.normal(size=(300, 8))
    changed = exact + 0.3 * generator.normal(size=exact.shape)
    whole = NeighbourRecall(exact).of(changed)
    monkeypatch.setattr(neighbours, "MOST_QUERIES", 100)
    sampled = NeighbourRecall(exact).of(changed)
    before, after = sorted_neighbours(exact, 10), sorted_neighbours(changed, 10)
    shares = [len(before[index] & after[index]) / 10 for index in range(0, 300, 3)]
    assert sampled[10] == pytest.approx(np.mean(shares), abs=1e-9)
    assert sampled[10] == pytest.approx(whole[10], abs=0.1)
