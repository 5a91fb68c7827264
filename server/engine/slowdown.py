"""By how much the last batches were slowed by whatever else uses the machine. Pure maths."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import combinations

_ALIKE = 1.2  # two batches whose quiet times differ by less than this factor say nothing of a delay
_DIFFERENT = 0.4  # share of the pairs that have to differ by more: three batches of eleven, of which one may be wrong

_MOST = 0.8  # of what the shortest batch took: something of it was work


def slowdown(recent: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The contention and the delay that batches of ``(quiet seconds, seconds)`` show: medians, which outliers spare.

    Clients that wait for their answers come in turns, a large batch and a small one: while the small one runs, all of
    the large one's clients send their next images, so it is slowed by more. Where batches are of different sizes, the
    line ``seconds / quiet = contention + delay / quiet`` tells the two apart, by the median slope between two batches
    (Sen, Journal of the American Statistical Association 63, 1968); where they are alike, there is no delay.
    """
    points = [(1 / quiet, seconds / quiet) for quiet, seconds in recent]
    pairs = [sorted(pair) for pair in combinations(points, 2)]
    slopes = [(high[1] - low[1]) / (high[0] - low[0]) for low, high in pairs if high[0] > _ALIKE * low[0]]
    delay = 0.0
    if len(slopes) > _DIFFERENT * len(pairs):
        shortest = min(seconds for _, seconds in recent)
        delay = min(max(statistics.median(slopes), 0.0), _MOST * shortest)
    return statistics.median(ratio - delay * inverse for inverse, ratio in points), delay
