"""What a server did between two readings of its metrics: pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from server.top.scrape import Scrape

DURATION = "tome_request_duration_seconds"
Key = TypeVar("Key")


@dataclass(frozen=True)
class Frame:
    """Rates are per second; what a server does not export, or did not do, is None or missing.

    Attributes:
        images: images answered, by level of ``r``.
        codes: requests, by status; those of all routes.
        refused: requests and files refused, by reason, missed deadlines among them.
        quantiles: seconds that 50, 95 and 99 % of the requests for a model did not exceed.
        batch: images in a forward pass, on average.
        busy: how much of the time a device computed.
        speedup: by model, how many times as long its images would have taken at r=0.
        stages: mean seconds of each stage of an image.
        engines: how many take work.
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


def compare(before: Scrape, after: Scrape) -> Frame:
    """What happened from ``before`` to ``after``."""
    seconds = max(after.at - before.at, 1e-9)

    def grown(name: str, label: str = "") -> dict[str, float]:
        return increase(before.by(name, label), after.by(name, label))

    def rates(name: str, label: str) -> dict[str, float]:
        return {key: value / seconds for key, value in grown(name, label).items() if value}

    refused = rates("tome_rejected_total", "reason")
    late = sum(grown("tome_deadline_missed_total").values())
    buckets = increase(_buckets(before), _buckets(after))
    forward = grown("tome_forward_seconds_total", "model")
    r0 = grown("tome_r0_equivalent_seconds_total", "model")
    batches = sum(grown("tome_batch_images_count").values())
    counts, sums = (
        grown(f"tome_stage_duration_seconds_{kind}", "stage") for kind in ("count", "sum")
    )
    return Frame(
        seconds=seconds,
        images=rates("tome_images_total", "r"),
        codes=rates("tome_requests_total", "code"),
        refused=refused | ({"deadline missed": late / seconds} if late else {}),
        quantiles={
            percent: value
            for percent in (50, 95, 99)
            if (value := quantile(buckets, percent)) is not None
        },
        batch=sum(grown("tome_batch_images_sum").values()) / batches if batches else None,
        busy=sum(forward.values()) / seconds,
        # Newly computed over the interval; the server's own tome_speedup_ratio looks back a minute.
        speedup={model: r0.get(model, 0.0) / spent for model, spent in forward.items() if spent},
        stages={stage: sums.get(stage, 0.0) / count for stage, count in counts.items() if count},
        queue=after.total("tome_queue_jobs"),
        inflight=after.total("tome_inflight_requests"),
        engines=int(after.total("tome_engine_ready") or 0),
        restarts=int(after.total("tome_engine_restarts_total") or 0),
    )


def increase(before: Mapping[Key, float], after: Mapping[Key, float]) -> dict[Key, float]:
    """How much each counter grew; one that shrank began again at 0, with a new process."""
    return {
        key: value - (before.get(key, 0.0) if value >= before.get(key, 0.0) else 0.0)
        for key, value in after.items()
    }


def quantile(buckets: Mapping[float, float], percent: float) -> float | None:
    """As Prometheus' ``histogram_quantile``: linear within a bucket; the last finite bound for what lies beyond.

    Args:
        buckets: observations at or below each upper bound, that of infinity among them.

    Returns:
        None where nothing was observed.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    rank = total * percent / 100
    low = 0.0
    below = 0.0
    for bound in bounds:
        if buckets[bound] >= rank and buckets[bound] > below:
            return (
                low
                if math.isinf(bound)
                else low + (bound - low) * (rank - below) / (buckets[bound] - below)
            )
        if not math.isinf(bound):
            low = bound
            below = buckets[bound]
    return low


def _buckets(scrape: Scrape) -> dict[float, float]:
    """The requests for a model by duration, all routes together; a scrape or a probe has no model."""
    sums: dict[float, float] = {}
    for labels, value in scrape.series.get(f"{DURATION}_bucket", ()):
        if labels.get("model"):
            bound = float(labels["le"])
            sums[bound] = sums.get(bound, 0.0) + value
    return sums
