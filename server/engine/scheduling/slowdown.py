"""Estimates how much other users of the machine slow down batches. Pure maths."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

_MIN_BATCHES = 6  # fewer batches show no delay
# Two batches tell contention and delay apart only if their undisturbed times differ by this factor.
_MIN_RATIO = 1.5
# Share of all pairs that must differ so much: three batches of another size among eleven, of which
# one may be an outlier.
_MIN_PAIRS = 0.4
_MIN_EXPLAINED = 0.5  # share of the errors that a delay must explain; less is noise
# Upper bound of the delay, as a share of the second shortest batch; the shortest may be an outlier.
_MAX_DELAY = 0.95


class _Point(NamedTuple):
    """One batch on the line ``slowdown = contention + delay * inverse``."""

    inverse: float  # 1 / seconds undisturbed
    slowdown: float  # seconds / seconds undisturbed


def slowdown(recent: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the contention (a factor) and the delay (seconds) of ``recent`` batches, by medians.

    Clients that wait for their answers come in turns, a large batch and a small one: while the
    small one runs, all clients of the large one send their next images, so it is slowed by more.
    Where batches are of different sizes, the line
    ``seconds / undisturbed = contention + delay / undisturbed`` separates the two, by the median
    slope between two batches (Sen, Journal of the American Statistical Association 63, 1968).
    Where batches are alike, there is no delay.

    Args:
        recent: of each batch the seconds that it takes undisturbed, and those that it took.
    """
    points = [_Point(1 / undisturbed, seconds / undisturbed) for undisturbed, seconds in recent]
    contention_alone = _contention(points, delay=0.0)
    slopes = _slopes(points)
    batches = len(points)
    pairs = batches * (batches - 1) // 2
    if batches < _MIN_BATCHES or len(slopes) < _MIN_PAIRS * pairs:
        return contention_alone, 0.0
    durations = sorted(seconds for _, seconds in recent)
    longest_delay = _MAX_DELAY * durations[1]
    delay = max(statistics.median(slopes), 0.0)
    delay = min(delay, longest_delay)
    contention = _contention(points, delay)
    error = _error(points, contention, delay)
    error_without_delay = _error(points, contention_alone, delay=0.0)
    if error > (1 - _MIN_EXPLAINED) * error_without_delay:
        return contention_alone, 0.0
    return contention, delay


def _slopes(points: Sequence[_Point]) -> list[float]:
    """Return the slope between any two points that are far enough apart."""
    inverses = [point.inverse for point in points]
    if max(inverses) <= _MIN_RATIO * min(inverses):
        return []  # as where every batch has one image
    slopes = []
    for one, other in combinations(points, 2):
        low, high = (one, other) if one.inverse < other.inverse else (other, one)
        if high.inverse > _MIN_RATIO * low.inverse:
            rise = high.slowdown - low.slowdown
            slopes.append(rise / (high.inverse - low.inverse))
    return slopes


def _contention(points: Sequence[_Point], delay: float) -> float:
    return statistics.median(point.slowdown - delay * point.inverse for point in points)


def _error(points: Sequence[_Point], contention: float, delay: float) -> float:
    """Return the sum of the relative errors without the largest, which may be an outlier's."""
    errors = []
    for point in points:
        error = point.slowdown - contention - delay * point.inverse
        errors.append(abs(error))
    return sum(sorted(errors)[:-1])
