"""One scrape of ``/metrics``."""

from __future__ import annotations

import http.client
import time
from collections import defaultdict
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from server.system.unix_http import connection_to, socket_path

TIMEOUT_SECONDS = 5.0

# Labels and value of each series, by the name of the sample.
SeriesByName = dict[str, list[tuple[dict[str, str], float]]]


class NoMetrics(Exception):
    """A scrape failed; the message says why."""


@dataclass(frozen=True)
class Scrape:
    """The series of one scrape.

    Attributes:
        at: time of the scrape, ``time.monotonic()``.
        series: labels and value of each series, by the name of the sample.
    """

    at: float
    series: SeriesByName

    @classmethod
    def parse(cls, text: str, at: float) -> Scrape:
        """Parse Prometheus' text format.

        Raises:
            NoMetrics: ``text`` is something else, or not from this server.
        """
        series: SeriesByName = defaultdict(list)
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    entry = (sample.labels, sample.value)
                    series[sample.name].append(entry)
        except (ValueError, IndexError, KeyError) as error:
            raise NoMetrics("the answer is not in the format of Prometheus") from error
        is_tome_serve = any(name.startswith("tome_") for name in series)
        if not is_tome_serve:
            raise NoMetrics("the answer is not from tome-serve")
        return cls(at, dict(series))

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the sums of the series ``name`` for each value of ``label``."""
        sums: dict[str, float] = defaultdict(float)
        series = self.series.get(name, [])
        for labels, value in series:
            key = labels.get(label, "")
            sums[key] += value
        return dict(sums)

    def total(self, name: str) -> float | None:
        """Return the sum of all series ``name``; None if there are none."""
        series = self.series.get(name)
        if not series:
            return None
        return sum(value for _, value in series)


def scrape(url: str, timeout: float = TIMEOUT_SECONDS) -> Scrape:
    """Scrape the metrics at ``url``, or at its ``/metrics`` if it has no path.

    Raises:
        NoMetrics: there is no answer, or an answer without metrics.
    """
    try:
        status, text = _get(url, timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NoMetrics(f"no answer: {reason}") from error
    if status != 200:
        raise NoMetrics(f"status {status}; metrics may have a port of their own")
    return Scrape.parse(text, time.monotonic())


def _get(url: str, timeout: float) -> tuple[int, str]:
    """Return status and body of a GET request."""
    connection = connection_to(url, timeout)
    path = urlsplit(url).path.rstrip("/") or "/metrics"
    if socket_path(url) is not None:
        path = "/metrics"
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        return response.status, body.decode("utf-8", "replace")
    finally:
        connection.close()
