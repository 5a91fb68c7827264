"""Counters of /metrics, which never fall, whichever process answers and whichever is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.chaos.client import Lost
from tests.chaos.harness import Series, scrape

_GROWING = ("_total", "_count", "_bucket", "_sum")
_PAUSE_SECONDS = 0.1


class Counters:
    """What one scrape after the other says.

    Attributes:
        scrapes: how many were answered.
        fallen: names of series that were lower than, or missing after, an earlier scrape.
    """

    def __init__(self, port: int) -> None:
        self.scrapes = 0
        self.fallen: list[str] = []
        self._port = port
        self._before: Series = {}

    def take(self, series: Series) -> None:
        """Compare one scrape with the one before."""
        growing = {key: value for key, value in series.items() if key[0].endswith(_GROWING)}
        for key, value in self._before.items():
            if growing.get(key, -1.0) < value:
                self.fallen.append(f"{key[0]} {dict(key[1])}: {value} {growing.get(key)}")
        self._before = growing
        self.scrapes += 1

    async def _keep_looking(self) -> None:
        while True:
            # The process that has accepted the connection may be the one that is lost.
            with contextlib.suppress(OSError, Lost):
                self.take(await scrape(self._port))
            await asyncio.sleep(_PAUSE_SECONDS)


@contextlib.asynccontextmanager
async def watch_counters(port: int) -> AsyncIterator[Counters]:
    """Scrape again and again, until the block is left."""
    counters = Counters(port)
    looking = asyncio.create_task(counters._keep_looking())
    try:
        yield counters
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
