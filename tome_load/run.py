"""Runs a load: ``report = await run_load(LoadSpec(...))``."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from itertools import count
from random import Random

from server.errors import ConfigError
from server.system.file_limit import raise_file_limit
from tome_load.arrivals import arrivals
from tome_load.client import Client, NoAnswer
from tome_load.record import Observer, Record
from tome_load.report import LoadReport
from tome_load.requests import draws, request_url
from tome_load.spec import LoadSpec

# Longest sleep, so that a stop takes effect soon.
_MAX_SLEEP_SECONDS = 0.25
_OTHER_FILES = 32  # besides the connections


async def run_load(
    spec: LoadSpec,
    observe: Observer | None = None,
    stop: asyncio.Event | None = None,
) -> LoadReport:
    """Send the requests of ``spec`` and wait for the last answer.

    Args:
        observe: called with every request when it has ended.
        stop: once set, nothing more is sent; requests in flight may still finish.

    Raises:
        ConfigError: `LoadSpec.probe` found no server, or a server that refuses the request (4xx).
    """
    run = _Run(spec, observe, stop or asyncio.Event())
    try:
        if spec.probe:
            await run.probe()
        return await run.run()
    finally:
        await run.client.close()


class _Run:
    """One run: its client, its plan, and the records of requests that have ended."""

    def __init__(self, spec: LoadSpec, observe: Observer | None, stop: asyncio.Event) -> None:
        self.spec = spec
        self.observe = observe
        self.stop = stop
        limit = spec.connections or spec.max_connections
        raise_file_limit(limit + _OTHER_FILES)
        self.client = Client(spec, limit)
        self.urls = {r: request_url(spec, r) for r in spec.r}
        self.draws = draws(spec)
        self.numbers = count()
        self.records: list[Record] = []
        self.start = 0.0  # of the measurement, time.monotonic()
        self.measured = 0  # requests started since then, in a closed loop

    async def probe(self) -> None:
        """Send one request for each ``r``, so that a mistake stops the run before it starts."""
        for r in dict.fromkeys(self.spec.r):
            record = Record(-1, 0, r, 0.0)
            try:
                await self._exchange(record)
            except NoAnswer as error:
                raise ConfigError(f"{self.spec.url} gives no answer: {error}") from None
            if 400 <= record.status < 500:
                raise ConfigError(
                    f"{self.spec.url} refuses r={r or 'none'}: {record.status},"
                    f" {_detail(record.body)}"
                )

    async def run(self) -> LoadReport:
        """Warm up, measure, and wait for the requests in flight."""
        cpu_start = time.process_time()
        started = time.time() + self.spec.warmup
        self.start = time.monotonic() + self.spec.warmup
        self.client.start = self.start
        async with asyncio.TaskGroup() as group:
            if self.spec.rate is not None:
                await self._send_as_planned(group, self.spec.rate)
            else:
                for _ in range(self.spec.connections or 0):
                    group.create_task(self._run_client())
        cpu_seconds = time.process_time() - cpu_start
        measured = [record for record in self.records if record.intended >= 0]
        measured.sort(key=_number)
        return LoadReport.of(
            self.spec,
            measured,
            started,
            cpu_seconds=cpu_seconds / max(1, len(self.records)),
            connections=self.client.opened,
        )

    async def _send_as_planned(self, group: asyncio.TaskGroup, rate: float) -> None:
        """Run an open loop: a late request or answer delays no other request."""
        for intended in self._planned_times(rate):
            await self._sleep_until(self.start + intended)
            if self.stop.is_set():
                return
            group.create_task(self._send(intended))

    async def _sleep_until(self, due: float) -> None:
        while not self.stop.is_set():
            remaining = due - time.monotonic()
            if remaining <= 0:
                return
            await asyncio.sleep(min(remaining, _MAX_SLEEP_SECONDS))

    def _planned_times(self, rate: float) -> Iterator[float]:
        """Yield when to send each request; negative in the warm-up."""
        random = Random(f"{self.spec.seed}/when")
        measured = 0
        for arrival in arrivals(self.spec.arrivals, rate, random):
            intended = arrival - self.spec.warmup
            if self._is_over(intended, measured):
                return
            measured += intended >= 0
            yield intended

    async def _run_client(self) -> None:
        """Run one client of a closed loop, which sends its next request after each answer."""
        while not self.stop.is_set():
            now = time.monotonic() - self.start
            if self._is_over(now, self.measured):
                return
            self.measured += now >= 0
            record = await self._send(now)
            if record.failure == "connect":
                # Connecting to a server that is down fails at once; do not spin.
                await asyncio.sleep(_MAX_SLEEP_SECONDS)

    def _is_over(self, when: float, measured: int) -> bool:
        """Return whether the run ends before a request at ``when``, after ``measured`` others."""
        if self.spec.duration is not None:
            return when >= self.spec.duration
        return when >= 0 and measured >= (self.spec.requests or 0)

    async def _send(self, intended: float) -> Record:
        """Send one request and record its outcome."""
        r, upload = next(self.draws)
        record = Record(next(self.numbers), upload, r, intended)
        try:
            await self._exchange(record)
        except NoAnswer as error:
            record.failure = error.kind
            record.ended = time.monotonic() - self.start
        if self.observe is not None:
            self.observe(record)
        record.body = b""
        self.records.append(record)
        return record

    async def _exchange(self, record: Record) -> None:
        body = self.spec.uploads[record.upload].content
        await self.client.post(self.urls[record.r], body, record)
        record.read_answer()


def _number(record: Record) -> int:
    return record.number


def _detail(body: bytes) -> str:
    """Return the detail of a problem document, or the beginning of another body."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
