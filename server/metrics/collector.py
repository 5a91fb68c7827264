"""What a scrape exports of the shared memory: equal series of all processes, added up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TypeAlias

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from server.metrics.definitions import PREFIX, SHARED, SPEEDUP, Definition, Kind
from server.metrics.regions import Region
from server.metrics.speedup import recent_work

# The values of each series of one metric, by those of its labels.
Totals: TypeAlias = dict[tuple[str, ...], list[float]]


class SharedCollector(Collector):
    """Exports the metrics in shared memory, the same in whichever process.

    Args:
        regions: of all processes.
        clock: ``time.monotonic``, except in tests.
    """

    def __init__(
        self, regions: Sequence[Region], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._regions = regions
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """Yield each metric. One without labels has a sample before its first event."""
        totals = self._read()
        for definition in SHARED:
            series = totals.get(definition.name, {})
            if not definition.labels:
                series.setdefault((), [0.0] * definition.values)
            yield _family(definition, dict(sorted(series.items())))

    def _read(self) -> dict[str, Totals]:
        """Return the sums over all regions, by name of the metric.

        Regions are added in the same order at each scrape. So no sum of growing values falls.
        """
        now = self._clock()
        totals: dict[str, Totals] = {}
        for region in self._regions:
            for (name, *labels), shared in region.entries().items():
                values: Sequence[float] = shared.tolist()
                if name == SPEEDUP.name:
                    values = recent_work(values, now)
                series = totals.setdefault(name, {})
                earlier = series.get(tuple(labels))
                if earlier is None:
                    series[tuple(labels)] = list(values)
                else:
                    series[tuple(labels)] = [a + b for a, b in zip(earlier, values, strict=True)]
        return totals


def _family(definition: Definition, series: Totals) -> Metric:
    name = PREFIX + definition.name
    if definition.kind is Kind.HISTOGRAM:
        return _histogram(name, definition, series)
    if definition.kind is Kind.SPEEDUP:
        return _speedup(name, definition, series)
    create = CounterMetricFamily if definition.kind is Kind.COUNTER else GaugeMetricFamily
    family = create(name, definition.help_text, labels=definition.labels)
    for labels, (value,) in series.items():
        family.add_metric(labels, value)
    return family


def _histogram(name: str, definition: Definition, series: Totals) -> Metric:
    family = HistogramMetricFamily(name, definition.help_text, labels=definition.labels)
    bounds = [_format(bound) for bound in (*definition.bounds, float("inf"))]
    for labels, (*buckets, total) in series.items():
        # The format wants the observations up to each bound, and takes their number from the last.
        family.add_metric(labels, list(zip(bounds, accumulate(buckets), strict=True)), total)
    return family


def _format(bound: float) -> str:
    text: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
    return text


def _speedup(name: str, definition: Definition, series: Totals) -> Metric:
    family = GaugeMetricFamily(name, definition.help_text, labels=definition.labels)
    for labels, (forward, r0_equivalent) in series.items():
        if forward > 0:
            family.add_metric(labels, r0_equivalent / forward)
    return family
