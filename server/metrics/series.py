"""What a process counts with: counters, gauges and histograms in its region of shared memory.

One thread of a process writes: the event loop of an API process, the loop of an engine. Elsewhere
``inc`` and ``observe`` are safe too where CPython has its global lock, since it changes threads in
the midst of no ``values[index] += amount``.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Generic, TypeVar

from server.metrics.definitions import SHARED, Definition
from server.metrics.regions import Region, Values, entry_bytes

log = logging.getLogger("tome.metrics")

OTHER = "other"  # the labels of a series that counts for those that the region has no room for

Series = TypeVar("Series")


class Counter:
    """A number that only grows."""

    __slots__ = ("_values",)

    def __init__(self, values: Values) -> None:
        self._values = values

    def inc(self, amount: float = 1.0) -> None:
        """Add ``amount``.

        Raises:
            ValueError: ``amount`` is negative.
        """
        if amount < 0:
            raise ValueError(f"a counter cannot fall, by {amount}")
        self._values[0] += amount


class Gauge:
    """A number of this process, which begins with 0 in each new process."""

    __slots__ = ("_values",)

    def __init__(self, values: Values) -> None:
        self._values = values
        values[0] = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add ``amount``."""
        self._values[0] += amount

    def dec(self, amount: float = 1.0) -> None:
        """Subtract ``amount``."""
        self._values[0] -= amount

    def set(self, value: float) -> None:
        """Replace the number."""
        self._values[0] = value


class Histogram:
    """Numbers of observations by size, and their sum.

    Args:
        values: of each bucket alone, infinity's last, and the sum.
        bounds: upper bounds of the buckets, without infinity.
    """

    __slots__ = ("_bounds", "_values")

    def __init__(self, values: Values, bounds: tuple[float, ...]) -> None:
        self._values = values
        self._bounds = bounds

    def observe(self, value: float) -> None:
        """Count one observation."""
        values = self._values
        values[bisect_left(self._bounds, value)] += 1.0
        values[-1] += value


class Labelled(Generic[Series]):
    """The series of a metric, by the values of its labels.

    Args:
        find: returns the series of some values, which this process has not used yet.
    """

    __slots__ = ("_find", "_series")

    def __init__(self, find: Callable[[tuple[str, ...]], Series]) -> None:
        self._find = find
        self._series: dict[tuple[str, ...], Series] = {}

    def labels(self, *values: str) -> Series:
        """Return the series of these values, one for each label.

        Raises:
            ValueError: there are fewer or more labels.
        """
        try:
            return self._series[values]
        except KeyError:
            return self._series.setdefault(values, self._find(values))


class SeriesWriter:
    """Finds or creates the series of one process in its region.

    A region that is full counts further values of labels in a series whose labels are all `OTHER`,
    for which there is always room.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._lock = threading.Lock()
        self._reserve = sum(
            entry_bytes((definition.name, *(OTHER for _ in definition.labels)), definition.values)
            for definition in SHARED
        )
        self._warned = False

    def counter(self, definition: Definition) -> Counter:
        """Return the counter of a metric without labels."""
        return Counter(self.find(definition))

    def gauge(self, definition: Definition) -> Gauge:
        """Return the gauge of a metric without labels."""
        return Gauge(self.find(definition))

    def histogram(self, definition: Definition) -> Histogram:
        """Return the histogram of a metric without labels."""
        return Histogram(self.find(definition), definition.bounds)

    def counters(self, definition: Definition) -> Labelled[Counter]:
        """Return the counters of a metric with labels."""
        return Labelled(lambda labels: Counter(self.find(definition, labels)))

    def histograms(self, definition: Definition) -> Labelled[Histogram]:
        """Return the histograms of a metric with labels."""
        return Labelled(lambda labels: Histogram(self.find(definition, labels), definition.bounds))

    def find(self, definition: Definition, labels: tuple[str, ...] = ()) -> Values:
        """Return the values of one series, which are 0 if no process of this region wrote any.

        Raises:
            ValueError: ``labels`` are fewer or more than those of ``definition``.
        """
        if len(labels) != len(definition.labels):
            raise ValueError(f"{definition.name} has the labels {definition.labels}, not {labels}")
        with self._lock:
            values = self._find(definition, labels, self._reserve if labels else 0)
            if values is None:
                self._warn()
                values = self._find(definition, (OTHER,) * len(labels), reserve=0)
        assert values is not None, "the reserve has room for it"
        return values

    def _find(self, definition: Definition, labels: tuple[str, ...], reserve: int) -> Values | None:
        key = (definition.name, *labels)
        values = self._region.entries().get(key)
        if values is None:
            values = self._region.append(key, definition.values, reserve)
        return values

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "the memory for metrics of this process is full; new values of labels are counted"
                " as %r",
                OTHER,
            )
