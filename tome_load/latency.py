"""Percentiles of the latency of many requests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least ``percent`` % of ``ordered`` do not exceed.

    This is the nearest-rank definition.

    Raises:
        ValueError: there are no values, or ``percent`` lies outside (0, 100].
    """
    if not ordered or not 0 < percent <= 100:
        raise ValueError("percentiles from above 0 to 100 of at least one value")
    # Round first: 99.9 % of 1000 is 999.0000000000001 in binary, one rank too many.
    rank = math.ceil(round(len(ordered) * percent / 100, 9))
    return ordered[rank - 1]


@dataclass(frozen=True)
class Latency:
    """The latency of ``count`` requests, in milliseconds."""

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
        """Summarize ``seconds``; None if there are none."""
        ordered = sorted(1000 * value for value in seconds)
        if not ordered:
            return None
        return cls(
            count=len(ordered),
            mean=math.fsum(ordered) / len(ordered),
            p50=percentile(ordered, 50),
            p90=percentile(ordered, 90),
            p95=percentile(ordered, 95),
            p99=percentile(ordered, 99),
            p999=percentile(ordered, 99.9),
            max=ordered[-1],
        )
