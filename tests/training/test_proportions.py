"""How sure a share of right answers is."""

from __future__ import annotations

import pytest
import torch

from training.proportions import loss, wilson


def test_the_interval_is_wilson_s() -> None:
    # Of R's prop.test(8, 10, correct=FALSE) and prop.test(0, 20, correct=FALSE).
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611252), abs=1e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_losses_are_counted_in_pairs() -> None:
    before = torch.tensor([True] * 90 + [False] * 10)
    after = torch.tensor([True] * 88 + [False] * 11 + [True])
    points, error = loss(before, after)
    assert points == pytest.approx(0.01)
    assert error == pytest.approx(((3 - 100 * 0.01**2) / 99) ** 0.5 / 10)
    assert loss(before, before) == (0.0, 0.0)
