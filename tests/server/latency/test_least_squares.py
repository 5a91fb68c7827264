"""The solver for least squares with non-negative coefficients."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.latency.least_squares import nonnegative_least_squares


@given(st.integers(0, 2**32), st.integers(5, 12))
def test_the_solution_is_optimal_and_not_negative(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    a = random.uniform(0, 1, (rows, 5))
    b = random.uniform(-0.5, 1, rows)
    gram = a.T @ a
    moment = a.T @ b
    solution = nonnegative_least_squares(gram, moment)
    assert (solution >= 0).all()
    # The conditions of Karush, Kuhn and Tucker: no coefficient can grow at a gain, and none above 0
    # can shrink at a gain.
    scale = np.sqrt(gram.diagonal())
    gradient = (gram @ solution - moment) / scale
    assert (gradient > -1e-3).all()
    assert np.abs(gradient[solution > 0]).max(initial=0) < 1e-3


def test_a_column_of_zeros_gets_the_coefficient_0() -> None:
    gram = np.diag([2.0, 0.0, 1.0, 0.0, 0.0])
    moment = np.array([1.0, 0.0, 3.0, 0.0, 0.0])
    solution = nonnegative_least_squares(gram, moment)
    np.testing.assert_allclose(solution, [0.5, 0, 3, 0, 0], rtol=1e-4)


def test_a_coefficient_that_would_be_negative_is_0() -> None:
    gram = np.array([[2.0, 1.0], [1.0, 2.0]])
    solution = nonnegative_least_squares(gram, np.array([2.0, -1.0]))
    np.testing.assert_allclose(solution, [1, 0], rtol=1e-4)
