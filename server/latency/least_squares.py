"""Least squares with non-negative coefficients, to fit the cost model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

_RIDGE = 1e-6  # added to the diagonal of the scaled problem, so that it always has one solution
_SMALLEST = 1e-300  # in place of 0 where something is divided by the value
_RELATIVE_TOLERANCE = 1e-10
_ZERO = 1e-14  # a coefficient below this is 0 up to rounding


def nonnegative_least_squares(gram: Vector, moment: Vector) -> Vector:
    """Return the x >= 0 that minimises |Ax - b|^2 = x'Gx - 2x'm + constant, with G = A'A, m = A'b.

    The active-set method of Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23.
    Free variables may be above 0; all others are held at 0.

    Args:
        gram: G, ``(n, n)``.
        moment: m, ``(n,)``.
    """
    size = len(moment)
    # Scale every column of A to length 1, so that the ridge has the same effect on each variable.
    squares = np.maximum(gram.diagonal(), _SMALLEST)
    scale = 1 / np.sqrt(squares)
    gram = gram * (scale[:, None] * scale)
    gram.flat[:: size + 1] += _RIDGE  # on the diagonal
    moment = moment * scale
    largest = float(np.abs(moment).max())
    tolerance = _RELATIVE_TOLERANCE * max(largest, _SMALLEST)
    solution = np.zeros(size)
    free = np.zeros(size, bool)
    for _ in range(3 * size):
        descent = moment - gram @ solution
        descent = np.where(free, -np.inf, descent)
        if descent.max() <= tolerance:
            break
        steepest = descent.argmax()
        free[steepest] = True
        solution = _minimise_free(gram, moment, solution, free)
    return solution * scale


def _minimise_free(
    gram: Vector,
    moment: Vector,
    solution: Vector,
    free: npt.NDArray[np.bool_],
) -> Vector:
    """Return the minimum over the free variables, with all others at 0.

    A variable that would become negative is held at 0 from then on: ``free`` changes in place.
    """
    while True:
        places = free.nonzero()[0]
        trial = np.zeros(len(moment))
        trial[places] = np.linalg.solve(gram[places[:, None], places], moment[places])
        negative = free & (trial <= 0)
        if not negative.any():
            return trial
        # Go towards the trial until the first variable reaches 0.
        before = solution[negative]
        steps = before / (before - trial[negative])
        step = float(steps.min())
        solution = solution + step * (trial - solution)
        free &= solution > _ZERO
        solution[~free] = 0.0
