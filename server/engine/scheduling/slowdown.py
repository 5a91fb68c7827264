"""By how much the last batches were slowed by whatever else uses the machine. Pure maths."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import combinations

_ENOUGH = 6  # batches, before there is a delay
_ALIKE = 1.5  # two batches whose quiet times differ by less than this factor say nothing of a delay
# Share of the pairs that have to differ by more: three batches of eleven, of which one may be
# wrong.
_DIFFERENT = 0.4
_EXPLAINS = 0.5  # of the errors has to go with it, else it is noise
_MOST = 0.95  # of what the second shortest batch took; the shortest may be an outlier


def slowdown(recent: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The contention and the delay that batches of ``(quiet seconds, seconds)`` show, by medians.

    Clients that wait for their answers come in turns, a large batch and a small one: while the
    small one runs, all of the large one's clients send their next images, so it is slowed by more.
    Where batches are of different sizes, the line ``seconds / quiet = contention + delay / quiet``
    tells the two apart, by the median slope between two batches (Sen, Journal of the American
    Statistical Association 63, 1968); where they are alike, there is no delay.
    """
    points = [(1 / quiet, seconds / quiet) for quiet, seconds in recent]
    plain = statistics.median(ratio for _, ratio in points)
    pairs = [sorted(pair) for pair in combinations(points, 2)]
    slopes = [
        (high[1] - low[1]) / (high[0] - low[0]) for low, high in pairs if high[0] > _ALIKE * low[0]
    ]
    if len(points) < _ENOUGH or len(slopes) < _DIFFERENT * len(pairs):
        return plain, 0.0
    second = sorted(seconds for _, seconds in recent)[1]
    delay = min(max(statistics.median(slopes), 0.0), _MOST * second)
    contention = statistics.median(ratio - delay * inverse for inverse, ratio in points)
    if _error(points, contention, delay) > (1 - _EXPLAINS) * _error(points, plain, 0.0):
        return plain, 0.0
    return contention, delay


def _error(points: Sequence[tuple[float, float]], contention: float, delay: float) -> float:
    """The sum of the errors relative to quiet times, without the largest, which may be an outlier's."""
    return sum(sorted(abs(ratio - contention - delay * inverse) for inverse, ratio in points)[:-1])
