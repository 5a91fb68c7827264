"""How close the features of merged images are to those at r=0, and how certain a mean of that is.

Pure arithmetic over features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.commands.proportions import NORMAL_DEVIATIONS

# Of fewer images the spread is hardly known, and the interval is all that a cosine can be.
_LEAST_IMAGES = 5


@dataclass(frozen=True)
class MeanCosine:
    """A mean of cosines, with its 95 % confidence interval; all from -1 to 1."""

    mean: float
    low: float
    high: float


def cosines(
    features: npt.NDArray[np.floating], exact: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Return the cosine of each vector with its counterpart; 1 where both are zero.

    Args:
        features: ``(..., D)``.
        exact: those at r=0, of the same shape.

    Returns:
        ``(...)``.
    """
    # In float32 the cosine of a vector with itself is not quite 1.
    first = np.asarray(features, np.float64)
    second = np.asarray(exact, np.float64)
    products = (first * second).sum(axis=-1)
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    both_zero = (np.abs(first).sum(axis=-1) == 0) & (np.abs(second).sum(axis=-1) == 0)
    quotients = products / np.where(lengths > 0, lengths, 1)
    return np.where(both_zero, 1.0, np.clip(quotients, -1, 1))


def dense_cosines(
    features: npt.NDArray[np.floating], exact: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Return the mean over the patches of each image of the cosine with the same patch, ``(B,)``.

    Args:
        features: of each patch, ``(B, N, D)``.
        exact: those at r=0, of the same shape.
    """
    return cosines(features, exact).mean(axis=-1)


def mean_cosine(values: npt.NDArray[np.float64]) -> MeanCosine:
    """Return the mean of the cosines of images, with Student's interval on a logarithmic scale.

    Most images are close to 1 and few are far from it, so the mean of the distances from 1 errs by
    a factor rather than by a difference.

    Args:
        values: of each image, ``(N,)``, N at least 1.
    """
    count = len(values)
    mean = float(values.mean())
    if count < _LEAST_IMAGES:
        return MeanCosine(mean, -1.0, 1.0)
    distance = 1 - mean
    if distance <= 0:
        return MeanCosine(mean, mean, 1.0)
    error = float(values.std(ddof=1)) / math.sqrt(count)
    factor = math.exp(student_deviations(count - 1) * error / distance)
    return MeanCosine(mean, max(-1.0, 1 - distance * factor), 1 - distance / factor)


def student_deviations(freedom: int) -> float:
    """Return within how many deviations 95 % of Student's distribution lie.

    By the expansion of Cornish and Fisher, which is exact to 1 % from 4 degrees of freedom on.
    """
    z = NORMAL_DEVIATIONS
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
