"""The margin of a second pass, against a search over all margins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.commands.agreement import TARGET, choose_margin, upper_bound


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
def test_the_bound_is_that_of_clopper_and_pearson(hits: int, count: int, bound: float) -> None:
    assert upper_bound(hits, count) == pytest.approx(bound, abs=1e-4)


@pytest.mark.parametrize(("hits", "count"), [(0, 50), (3, 50), (20, 40)])
def test_at_the_bound_so_few_hits_have_a_probability_of_a_twentieth(hits: int, count: int) -> None:
    share = upper_bound(hits, count)
    terms = (
        math.comb(count, number) * share**number * (1 - share) ** (count - number)
        for number in range(hits + 1)
    )
    assert sum(terms) == pytest.approx(0.05)


images = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=40)


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
