"""The margin of a second pass, against a search over all margins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.commands.agreement import TARGET, agreement_interval, choose_margin
from server.commands.proportions import upper_bound


@pytest.mark.parametrize(
    ("differing", "count", "low", "high"),
    [
        # Clopper and Pearson's tables: 1 of 20, 5 of 10, none of 30.
        (1, 20, 0.7513, 0.9987),
        (5, 10, 0.1871, 0.8129),
        (0, 30, 1 - 0.1157, 1.0),
    ],
)
def test_the_interval_is_that_of_clopper_and_pearson(
    differing: int, count: int, low: float, high: float
) -> None:
    found = agreement_interval(np.arange(count) >= differing)
    assert found == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98, 0.998, 0.9999])
def test_at_least_95_of_100_intervals_hold(share: float) -> None:
    """Over all outcomes of 60 images, weighted by how probable they are."""
    count = 60
    held = 0.0
    for differing in range(count + 1):
        low, high = agreement_interval(np.arange(count) >= differing)
        if low <= share <= high:
            ways = math.comb(count, differing)
            held += ways * (1 - share) ** differing * share ** (count - differing)
    assert held >= 0.95


below_one = st.floats(0, 1, width=32, exclude_max=True)
images = st.lists(st.tuples(below_one, st.booleans()), min_size=1, max_size=40)


@given(images, st.sampled_from([0.5, 0.8, 0.95]), st.sampled_from([np.float32, np.float64]))
def test_it_is_the_smallest_margin_that_shows_the_target(
    images: list[tuple[float, bool]], target: float, dtype: type
) -> None:
    margins = np.array([margin for margin, _ in images])
    agrees = np.array([agree for _, agree in images])

    def shown(margin: float) -> float:
        differing = int((~agrees & (margins >= margin)).sum())
        return 1 - upper_bound(differing, len(images))

    found = choose_margin(margins.astype(dtype), agrees, target)
    assert found.shown == pytest.approx(shown(found.margin))
    candidates = [0.0, *(float(np.nextafter(margin, 2)) for margin in margins)]
    enough = [margin for margin in candidates if shown(margin) >= target]
    best = max(map(shown, candidates))
    expected = min(enough) if enough else min(m for m in candidates if shown(m) == best)
    assert found.margin == expected
    assert found.second_passes == pytest.approx(np.mean(margins < found.margin))
    assert found.agreement == pytest.approx(1 - np.mean(~agrees & (margins >= found.margin)))


def test_no_margin_finds_an_image_that_differs_at_a_margin_of_1() -> None:
    found = choose_margin(np.array([1.0, 0.5]), np.array([False, True]))
    assert (found.margin, found.second_passes, found.agreement) == (1.0, 0.5, 0.5)


def test_three_thousand_images_show_the_target_if_none_differs() -> None:
    margins = np.linspace(0, 1, 3000)
    agrees = margins > 0.1
    found = choose_margin(margins, agrees)
    assert found.shown >= TARGET
    assert found.agreement == 1
    assert found.second_passes == pytest.approx(0.1, abs=1e-3)
    fewer = choose_margin(margins[::10], agrees[::10])
    assert fewer.agreement == 1
    assert fewer.shown < TARGET
