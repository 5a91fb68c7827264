"""One reading of ``/metrics``."""

from __future__ import annotations

import http.client
import time
from collections import defaultdict
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_SECONDS = 5.0


class NoMetrics(Exception):
    """There was nothing to read; the message says why."""


@dataclass(frozen=True)
class Scrape:
    """The series of one reading.

    Attributes:
        at: when it was made, ``time.monotonic()``.
        series: labels and value of each, by the sample's name.
    """

    at: float
    series: dict[str, list[tuple[dict[str, str], float]]]

    @classmethod
    def parse(cls, text: str, at: float) -> Scrape:
        """Read Prometheus' text format. Raises `NoMetrics` if ``text`` is something else, or not of our server."""
        series: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    series[sample.name].append((sample.labels, sample.value))
        except (ValueError, IndexError, KeyError) as error:
            raise NoMetrics("what answers there are no Prometheus metrics") from error
        if not any(name.startswith("tome_") for name in series):
            raise NoMetrics("what answers there is no tome-serve")
        return cls(at, dict(series))

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums of the series ``name`` for each value of ``label``; empty where there are none."""
        sums: dict[str, float] = defaultdict(float)
        for labels, value in self.series.get(name, ()):
            sums[labels.get(label, "")] += value
        return dict(sums)

    def total(self, name: str) -> float | None:
        """The sum of all series ``name``; None where there are none."""
        found = [value for _, value in self.series.get(name, ())]
        return sum(found) if found else None


def scrape(url: str, timeout: float = TIMEOUT_SECONDS) -> Scrape:
    """Read the metrics at ``url``, at its ``/metrics`` if it names no path. Raises `NoMetrics`."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=timeout)
        try:
            connection.request("GET", parts.path.rstrip("/") or "/metrics")
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoMetrics(f"no answer: {getattr(error, 'strerror', None) or error}") from error
    if response.status != 200:
        raise NoMetrics(f"status {response.status}; metrics may have a port of their own")
    return Scrape.parse(text, time.monotonic())
