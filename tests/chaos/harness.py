"""What every scenario needs: a real server, a crowd of clients that check each answer, and both
sides' counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.api_processes import connect_to_each
from tests.chaos.client import Connection, Lost, Reply, ask, encode
from tests.chaos.oracle import Case, Oracle
from tests.chaos.results import Check
from tests.server.conftest import RunningServer, run_server

FAULTY = "tests.server.engine.faulty_server"
READY_SECONDS = 60.0
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass(frozen=True)
class Arena:
    """Where a scenario runs.

    Attributes:
        progress: called with how much more of ``times`` is done.
        workers: API processes of each server.
    """

    oracle: Oracle
    folder: Path
    times: int
    progress: Callable[[int], None] = lambda more: None
    workers: int = 1

    @contextlib.contextmanager
    def server(
        self, faulty: bool = False, stderr: IO[str] | None = None, **settings: object
    ) -> Iterator[RunningServer]:
        """A server of the tiny model; ``faulty``: its engine fails where a picture tells it to."""
        os.environ["FAULTY"] = "faulty"
        tiny: dict[str, Any] = {
            "config": self.oracle.config,
            "dtype": "float32",
            "threads": 1,
            "levels": "0",
            "log_level": "error",
            "api_workers": self.workers,
        }
        module = FAULTY if faulty else "server"
        with run_server(module=module, stderr=stderr, **(tiny | settings)) as server:
            yield server


async def scrape(port: int) -> Series:
    """All series of /metrics."""
    text = (await ask(port, encode("GET", "/metrics"))).body.decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(series: Series, name: str, **labels: str) -> float:
    """The sum over all series ``name`` that have ``labels``."""
    return sum(
        value
        for (found, has), value in series.items()
        if found == name and labels.items() <= dict(has).items()
    )


def answers(series: Series) -> Counter[tuple[str, int]]:
    """How often each route was answered with each status."""
    found: Counter[tuple[str, int]] = Counter()
    for (name, labels), value in series.items():
        if name == "tome_requests_total":
            has = dict(labels)
            found[has["route"], int(has["code"])] += int(value)
    return found


async def until(
    condition: Callable[[], object],
    seconds: float = READY_SECONDS,
    load: asyncio.Task[None] | None = None,
) -> None:
    """Wait until ``condition`` holds. Raises `TimeoutError`, or what ended ``load``, which should
    go on meanwhile.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)
            if load is not None and load.done():
                load.result()
                raise AssertionError("all clients have stopped asking")


async def is_ready(port: int) -> bool:
    with contextlib.suppress(OSError, Lost):
        return (await ask(port, encode("GET", "/readyz"))).status == 200
    return False


async def wait_ready(port: int, seconds: float = READY_SECONDS) -> None:
    """Return when the server takes work. Raises `TimeoutError`."""
    async with asyncio.timeout(seconds):
        while not await is_ready(port):
            await asyncio.sleep(0.05)


async def settle(port: int) -> Series:
    """What /metrics says once nothing is under way any more."""
    async with asyncio.timeout(30):
        while True:
            series = await scrape(port)
            if (
                total(series, "tome_inflight_requests") == 1
                and total(series, "tome_queue_jobs") == 0
            ):
                return series
            await asyncio.sleep(0.05)


async def free_slots(server: RunningServer, limit: int, good: Case) -> int:
    """How many images the server takes at once, of a ``limit`` that it should: what is missing is
    lost for ever.

    Each API process has a share of the slots, so each is asked for the largest of these.
    """
    connections = await connect_to_each(server)
    share = -(-limit // len(connections))
    boundary = b"--x\r\nContent-Disposition: form-data; name=f; filename=f\r\n\r\n"
    body = b"".join(boundary + good.body + b"\r\n" for _ in range(share)) + b"--x--\r\n"
    request = encode("POST", good.path, body, content_type="multipart/form-data; boundary=x")
    replies = await asyncio.gather(*(connection.ask(request) for connection in connections))
    for connection in connections:
        connection.close()
    return sum(reply.body.count(b'"batch_size"') for reply in replies if reply.status == 200)


@dataclass
class Tally:
    """What the clients saw.

    Attributes:
        answered: by route and status.
        cancelled: requests, by route, whose client went away.
        unanswered: ids of requests after which the connection ended.
        slowest: seconds.
    """

    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    cancelled: Counter[str] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)
    wrong: int = 0
    unexpected: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0

    def take(self, case: Case, reply: Reply, allowed: frozenset[int]) -> None:
        """Count one answer and check it."""
        self.answered[case.route, reply.status] += 1
        self.slowest = max(self.slowest, reply.seconds)
        if reply.status == 200 and 200 in case.allowed:
            self.wrong += not case.is_right(reply)
        elif reply.status not in case.allowed | allowed:
            self.unexpected[reply.status] += 1

    def of(self, status: int) -> int:
        """Answers with ``status``."""
        return sum(count for (_, found), count in self.answered.items() if found == status)

    @property
    def asked(self) -> int:
        return sum(self.answered.values()) + sum(self.cancelled.values()) + len(self.unanswered)

    @property
    def lost(self) -> int:
        """Answers that did not come, or that belong to another request."""
        return self.wrong + len(self.unanswered)

    def miscounted(self, before: Series, after: Series) -> int:
        """How many requests client and server count differently.

        One whose client went away counts as 499, or with the status of an answer that was on its
        way already.
        """
        server = answers(after) - answers(before)
        wrong = 0
        for route in {route for route, _ in self.answered} | set(self.cancelled):
            there = Counter(
                {status: count for (name, status), count in server.items() if name == route}
            )
            here = Counter(
                {status: count for (name, status), count in self.answered.items() if name == route}
            )
            wrong += sum((here - there).values())  # answers that the server did not give
            wrong += abs(sum((there - here).values()) - self.cancelled[route])
        return wrong

    def checks(self) -> list[Check]:
        """The bars of every scenario."""
        return [
            Check("wrong answers", self.wrong, "most", 0),
            Check("unanswered", len(self.unanswered), "most", 0),
            Check("unexpected statuses", sum(self.unexpected.values()), "most", 0),
        ]


class Crowd:
    """Clients that ask over and over, each on a connection of its own.

    Args:
        allowed: statuses that any request may get in this scenario.
        cancels: share of requests whose client goes away.
        pause: seconds that a client waits after a 503 before it comes back.
        every: seconds that a client waits after any answer.
    """

    def __init__(
        self,
        port: int,
        draw: Callable[[random.Random], Case],
        allowed: Iterable[int] = (),
        cancels: float = 0.0,
        pause: float = 0.05,
        every: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.port = port
        self.draw = draw
        self.allowed = frozenset(allowed)
        self.cancels = cancels
        self.pause = pause
        self.every = every
        self.tally = Tally()
        self.random = random.Random(seed)
        self._ids = 0

    async def run(
        self,
        clients: int,
        go_on: Callable[[], bool],
        on_answer: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Ask with ``clients`` at once while ``go_on`` says so."""
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._client(go_on, on_answer))

    async def _client(self, go_on: Callable[[], bool], on_answer: Callable[[int], None]) -> None:
        connection: Connection | None = None
        while go_on():
            try:
                connection = connection or await self.connect()
            except OSError:  # nobody listens, so nothing was taken in
                return
            keep = await self._ask(connection)
            on_answer(1)
            if not keep:
                self.disconnect(connection)
                connection = None
        if connection:
            self.disconnect(connection)

    async def connect(self) -> Connection:
        """A connection for further requests. Raises `OSError` if nobody listens."""
        return await Connection.open(self.port)

    def disconnect(self, connection: Connection) -> None:
        """Close a connection."""
        connection.close()

    def on_lost(self, connection: Connection, request_id: str) -> None:
        """Count a request without an answer."""
        self.tally.unanswered.append(request_id)

    def on_reply(self, connection: Connection, case: Case, reply: Reply) -> bool:
        """Count an answer; whether the client keeps its connection."""
        self.tally.take(case, reply, self.allowed)
        return reply.headers.get("connection") != "close"

    async def _ask(self, connection: Connection) -> bool:
        """One request; whether its connection can be used again."""
        case = self.draw(self.random)
        self._ids += 1
        request_id = str(self._ids)
        request = case.request(x_request_id=request_id)
        if self.random.random() < self.cancels:
            self.tally.cancelled[case.route] += 1
            connection.writer.write(request)
            await asyncio.sleep(self.random.choice((0, 0.001, 0.01)))
            return False
        try:
            reply = await connection.ask(request)
        except Lost:
            self.on_lost(connection, request_id)
            return False
        keep = self.on_reply(connection, case, reply)
        if reply.status == 503 or self.every:
            await asyncio.sleep(max(self.every, self.pause if reply.status == 503 else 0))
        return keep


def countdown(count: int) -> Callable[[], bool]:
    """True so many times."""
    left = iter(range(count))
    return lambda: next(left, None) is not None


def resident_mib(*pids: int) -> float:
    """Resident memory of processes together."""
    kib = 0
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        kib += int(status.split("VmRSS:")[1].split()[0])
    return kib / 1024


def open_files(server: RunningServer) -> int:
    """Files that the parent and the API processes have open together."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in server.front_end())


async def files_lost(server: RunningServer, before: int) -> int:
    """How many more files than ``before`` stay open once the connections of the past have been
    closed.
    """
    with contextlib.suppress(TimeoutError):
        await until(lambda: open_files(server) <= before, 30)
    return max(0, open_files(server) - before)


def threads(server: RunningServer) -> int:
    """Threads of the parent and the API processes together."""
    return sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in server.front_end())


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
