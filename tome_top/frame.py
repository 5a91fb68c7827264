"""What a server did between two scrapes of its metrics: pure functions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from tome_top.scrape import Scrape

DURATION = "tome_request_duration_seconds"
PERCENTILES = (50, 95, 99)
_MIN_SECONDS = 1e-9  # keeps rates finite

Key = TypeVar("Key")


@dataclass(frozen=True)
class Frame:
    """The work of one interval. Rates are per second.

    What a server does not export, or did not do, is None or missing.

    Attributes:
        images: rate of images answered, by level of ``r``.
        codes: rate of requests by status, over all routes.
        refused: rate of requests and files refused, by reason; missed deadlines are one of them.
        quantiles: latency in seconds of requests for a model, by percentile.
        batch: images in a batch, on average.
        busy: share of the time in which a device computed.
        speedup: by model, how many times as long its images would have taken at r=0.
        stages: mean seconds of each stage of an image.
        queue: images that the engines have not answered.
        inflight: requests in flight.
        engines: number of engines that are ready.
        restarts: restarts of engine processes so far.
    """

    seconds: float
    images: dict[str, float]
    codes: dict[str, float]
    refused: dict[str, float]
    quantiles: dict[int, float]
    batch: float | None
    busy: float
    speedup: dict[str, float]
    stages: dict[str, float]
    queue: float | None
    inflight: float | None
    engines: int
    restarts: int


class _Interval:
    """Increases of counters between two scrapes."""

    def __init__(self, before: Scrape, after: Scrape) -> None:
        self._before = before
        self._after = after
        self.seconds = max(after.at - before.at, _MIN_SECONDS)

    def increases(self, name: str, label: str = "") -> dict[str, float]:
        """Return the increase of ``name`` for each value of ``label``."""
        before = self._before.by(name, label)
        after = self._after.by(name, label)
        return increase(before, after)

    def total(self, name: str) -> float:
        """Return the increase of ``name`` over all its series."""
        return sum(self.increases(name).values())

    def rates(self, name: str, label: str) -> dict[str, float]:
        """Return increases per second, where there are any."""
        rates = {}
        for key, value in self.increases(name, label).items():
            if value:
                rates[key] = value / self.seconds
        return rates


def compare(before: Scrape, after: Scrape) -> Frame:
    """Return what happened from ``before`` to ``after``."""
    interval = _Interval(before, after)
    forward = interval.increases("tome_forward_seconds_total", "model")
    buckets = increase(_buckets(before), _buckets(after))
    engines = after.total("tome_engine_ready") or 0
    restarts = after.total("tome_engine_restarts_total") or 0
    return Frame(
        seconds=interval.seconds,
        images=interval.rates("tome_images_total", "r"),
        codes=interval.rates("tome_requests_total", "code"),
        refused=_refused(interval),
        quantiles=_quantiles(buckets),
        batch=_mean_batch(interval),
        busy=sum(forward.values()) / interval.seconds,
        speedup=_speedups(interval, forward),
        stages=_mean_stages(interval),
        queue=after.total("tome_queue_jobs"),
        inflight=after.total("tome_inflight_requests"),
        engines=int(engines),
        restarts=int(restarts),
    )


def _refused(interval: _Interval) -> dict[str, float]:
    refused = interval.rates("tome_rejected_total", "reason")
    missed = interval.total("tome_deadline_missed_total")
    if missed:
        refused["deadline missed"] = missed / interval.seconds
    return refused


def _mean_batch(interval: _Interval) -> float | None:
    batches = interval.total("tome_batch_images_count")
    if not batches:
        return None
    return interval.total("tome_batch_images_sum") / batches


def _speedups(
    interval: _Interval,
    forward: Mapping[str, float],
) -> dict[str, float]:
    """Return the speed-up of the interval; ``tome_speedup_ratio`` covers a minute instead."""
    r0_equivalent = interval.increases("tome_r0_equivalent_seconds_total", "model")
    speedups = {}
    for model, seconds in forward.items():
        if seconds:
            r0_seconds = r0_equivalent.get(model, 0.0)
            speedups[model] = r0_seconds / seconds
    return speedups


def _mean_stages(interval: _Interval) -> dict[str, float]:
    counts = interval.increases("tome_stage_duration_seconds_count", "stage")
    sums = interval.increases("tome_stage_duration_seconds_sum", "stage")
    means = {}
    for stage, count in counts.items():
        if count:
            seconds = sums.get(stage, 0.0)
            means[stage] = seconds / count
    return means


def _quantiles(buckets: Mapping[float, float]) -> dict[int, float]:
    found = {}
    for percent in PERCENTILES:
        value = quantile(buckets, percent)
        if value is not None:
            found[percent] = value
    return found


def increase(
    before: Mapping[Key, float],
    after: Mapping[Key, float],
) -> dict[Key, float]:
    """Return the increase of each counter.

    A counter that is lower than before was reset to 0 by a restart.
    """
    increases = {}
    for key, value in after.items():
        start = before.get(key, 0.0)
        if value < start:  # reset
            start = 0.0
        increases[key] = value - start
    return increases


def quantile(buckets: Mapping[float, float], percent: float) -> float | None:
    """Interpolate within a bucket, as Prometheus' ``histogram_quantile`` does.

    A quantile in the last bucket, which has no upper bound, is its lower bound.

    Args:
        buckets: number of observations at or below each upper bound, infinity included.

    Returns:
        None if there are no observations.
    """
    bounds = sorted(buckets)
    if not bounds:
        return None
    total = buckets[bounds[-1]]
    if total <= 0:
        return None
    rank = total * percent / 100
    low = 0.0
    below = 0.0
    for bound in bounds:
        if math.isinf(bound):
            break
        count = buckets[bound]
        if count >= rank and count > below:
            width = bound - low
            return low + width * (rank - below) / (count - below)
        low = bound
        below = count
    return low


def _buckets(scrape: Scrape) -> dict[float, float]:
    """Return the durations of requests for a model, over all routes; other requests have none."""
    buckets: dict[float, float] = defaultdict(float)
    series = scrape.series.get(f"{DURATION}_bucket", ())
    for labels, value in series:
        if labels.get("model"):
            bound = float(labels["le"])
            buckets[bound] += value
    return buckets
