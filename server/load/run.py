"""Runs a load: ``report = await run_load(LoadSpec(...))``."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from itertools import count
from random import Random

from server.errors import ConfigError
from server.load.arrivals import arrivals
from server.load.connection import NoAnswer
from server.load.connections import Connections
from server.load.record import Observer, Record
from server.load.report import LoadReport
from server.load.requests import Requests, draws
from server.load.spec import LoadSpec

_NAP_SECONDS = 0.25  # the longest sleep, so that a stop is soon noticed


async def run_load(
    spec: LoadSpec, observe: Observer | None = None, stop: asyncio.Event | None = None
) -> LoadReport:
    """Make the load of ``spec``, and wait for the last answer.

    Args:
        observe: is shown every request when it is over.
        stop: once it is set nothing more is sent; what is under way is still waited for.

    Raises:
        ConfigError: `LoadSpec.probe` found no server there, or one that finds fault with the
            request.
    """
    run = _Run(spec, observe, stop or asyncio.Event())
    try:
        if spec.probe:
            await run.probe()
        return await run.run()
    finally:
        run.connections.close()


class _Run:
    """One run: its connections, its plan, and the records of what is over."""

    def __init__(self, spec: LoadSpec, observe: Observer | None, stop: asyncio.Event) -> None:
        self.spec = spec
        self.observe = observe
        self.stop = stop
        self.connections = Connections(
            spec.url, spec.connections or spec.max_connections, spec.timeout
        )
        self.requests = Requests(spec)
        self.draws = draws(spec)
        self.numbers = count()
        self.records: list[Record] = []
        self.zero = 0.0  # when measuring begins, time.monotonic()
        self.measured = 0  # requests of the measured time that have been started

    async def probe(self) -> None:
        """One request for each ``r``: a mistake in what is asked for should stop a run before it starts."""
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
        """Warm up, measure, wait for the rest."""
        cpu = time.process_time()
        started = time.time() + self.spec.warmup
        self.zero = time.monotonic() + self.spec.warmup
        async with asyncio.TaskGroup() as group:
            if self.spec.rate is not None:
                await self._by_plan(group, self.spec.rate)
            else:
                for _ in range(self.spec.connections or 0):
                    group.create_task(self._client())
        cpu = (time.process_time() - cpu) / max(1, len(self.records))
        measured = sorted(
            (record for record in self.records if record.intended >= 0),
            key=lambda record: record.number,
        )
        return LoadReport.of(self.spec, measured, started, cpu, self.connections.opened)

    async def _by_plan(self, group: asyncio.TaskGroup, rate: float) -> None:
        """Open loop: what is late, here or at the server, delays nothing that comes after."""
        for when in self._plan(rate):
            while (left := self.zero + when - time.monotonic()) > 0 and not self.stop.is_set():
                await asyncio.sleep(min(left, _NAP_SECONDS))
            if self.stop.is_set():
                return
            group.create_task(self._one(when))

    def _plan(self, rate: float) -> Iterator[float]:
        planned = 0
        for time_ in arrivals(self.spec.arrivals, rate, Random(f"{self.spec.seed}/when")):
            when = time_ - self.spec.warmup
            planned += when >= 0
            if self._is_over(when, planned - 1):
                return
            yield when

    async def _client(self) -> None:
        """Closed loop: the next request when there is an answer."""
        while not self.stop.is_set():
            now = time.monotonic() - self.zero
            if self._is_over(now, self.measured):
                return
            self.measured += now >= 0
            if (await self._one(now)).failure == "connect":
                await asyncio.sleep(
                    _NAP_SECONDS
                )  # a server that is away fails at once; do not spin

    def _is_over(self, when: float, before: int) -> bool:
        """Whether a request at ``when``, with ``before`` measured ones ahead of it, is one too many."""
        spec = self.spec
        return (
            when >= spec.duration
            if spec.duration is not None
            else when >= 0 and before >= (spec.requests or 0)
        )

    async def _one(self, intended: float) -> Record:
        r, picture = next(self.draws)
        record = Record(next(self.numbers), picture, r, intended)
        try:
            await self._exchange(record)
        except NoAnswer as error:
            record.failure = error.kind
            record.done = time.monotonic() - self.zero
        if self.observe is not None:
            self.observe(record)
        record.body = b""
        self.records.append(record)
        return record

    async def _exchange(self, record: Record) -> None:
        connection = await self.connections.lease()
        try:
            record.sent = time.monotonic() - self.zero
            request = self.requests.bytes_of(record.r, record.picture)
            record.status, record.body, done = await connection.exchange(request, self.spec.timeout)
        finally:
            self.connections.give_back(connection)
        record.done = done - self.zero
        record.read_answer()


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
