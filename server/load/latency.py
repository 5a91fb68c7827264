"""Times of many requests in a few numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value of ``ordered`` that at least ``percent`` % of them do not exceed (nearest rank).

    Raises:
        ValueError: there are no values, or ``percent`` lies outside (0, 100].
    """
    if not ordered or not 0 < percent <= 100:
        raise ValueError("percentiles from above 0 to 100 of at least one value")
    # Rounded first: 99.9 % of 1000 is 999.0000000000001 in binary, and would be one rank too far.
    return ordered[math.ceil(round(len(ordered) * percent / 100, 9)) - 1]


@dataclass(frozen=True)
class Latency:
    """Milliseconds; ``count`` requests."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latency | None:
        """What ``seconds`` amount to; None where there are none."""
        ordered = sorted(1000 * value for value in seconds)
        if not ordered:
            return None
        mean = math.fsum(ordered) / len(ordered)
        p50, p90, p95, p99, p999 = (
            percentile(ordered, percent) for percent in (50, 90, 95, 99, 99.9)
        )
        return cls(len(ordered), mean, p50, p90, p95, p99, p999, ordered[-1])
