"""Tolerance of the self check: errors of rounding pass, larger ones fail."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.engine.device import tolerance
from server.engine.device.tolerance import judge, relative_errors

FLOAT32_RESOLUTION = 1e-7
ERRORS = st.lists(st.floats(0, 10), min_size=1, max_size=20)


@given(ERRORS, st.floats(0, 1))
def test_errors_of_rounding_pass(
    rounding_errors: list[float],
    resolution: float,
) -> None:
    assert judge(rounding_errors, rounding_errors, resolution) == ""
    exact = [0.0] * len(rounding_errors)
    assert judge(exact, rounding_errors, resolution) == ""


@given(ERRORS)
def test_nan_and_errors_beyond_the_tolerance_fail(rounding_errors: list[float]) -> None:
    limit = tolerance.ROUNDING_FACTOR * max(rounding_errors) + tolerance.MAX_TOLERANCE
    one_outlier = [*rounding_errors, *rounding_errors, limit + 0.01]
    assert "for the worst image" in judge(one_outlier, rounding_errors, FLOAT32_RESOLUTION)
    all_wrong = [limit] * 3
    assert "for the median image" in judge(all_wrong, rounding_errors, FLOAT32_RESOLUTION)
    assert judge([math.inf], rounding_errors, FLOAT32_RESOLUTION)


def test_an_error_is_relative_to_the_logits_of_its_image() -> None:
    batch_1 = torch.tensor([[3.0, 4.5], [0.0, 2.0]])
    reference_1 = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    batch_2 = torch.tensor([[math.nan, 0.0]])
    reference_2 = torch.tensor([[1.0, 0.0]])
    errors = relative_errors([batch_1, batch_2], [reference_1, reference_2])
    assert errors == [pytest.approx(0.1), 0.0, math.inf]


def test_logits_of_another_shape_are_an_error() -> None:
    with pytest.raises(ValueError, match="shape"):
        relative_errors([torch.ones(2, 1)], [torch.ones(2, 2)])
