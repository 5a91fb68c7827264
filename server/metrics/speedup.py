"""The speed-up of merging over the last minute: what engines note, and what a scrape makes of it.

An engine keeps, for each model, one entry for each of the last 60 seconds in which a batch ended:
the second, the device time of the batches, and their device time at r=0. They form a ring, so that
memory is bounded at any rate. Times are those of ``time.monotonic()``, which all processes share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from server.metrics.definitions import SPEEDUP, SPEEDUP_WINDOW, WINDOW_FIELDS
from server.metrics.regions import Values
from server.metrics.series import SeriesWriter


class SpeedupWindow:
    """The work of one engine in the last minute. One thread writes it."""

    def __init__(self, writer: SeriesWriter, clock: Callable[[], float] = time.monotonic) -> None:
        self._writer = writer
        self._clock = clock
        self._rings: dict[str, Values] = {}

    def add(self, model: str, forward: float, r0_equivalent: float) -> None:
        """Count a batch of ``forward`` seconds that would have taken ``r0_equivalent`` at r=0."""
        ring = self._rings.get(model)
        if ring is None:
            ring = self._rings[model] = self._writer.find(SPEEDUP, (model,))
        now = int(self._clock())
        start = now % SPEEDUP_WINDOW * WINDOW_FIELDS
        if ring[start] != now:
            ring[start] = 0.0  # nobody counts the entry while it changes
            ring[start + 1] = ring[start + 2] = 0.0
            ring[start] = now
        ring[start + 1] += forward
        ring[start + 2] += r0_equivalent


def recent_work(ring: Sequence[float], now: float) -> tuple[float, float]:
    """Return the device time of the last minute, and that time at r=0, both in seconds.

    Args:
        ring: the values of `SpeedupWindow`.
        now: ``time.monotonic()`` seconds.
    """
    forward = r0_equivalent = 0.0
    for start in range(0, len(ring), WINDOW_FIELDS):
        if ring[start] > now - SPEEDUP_WINDOW:
            forward += ring[start + 1]
            r0_equivalent += ring[start + 2]
    return forward, r0_equivalent
