"""Clients that know which API process has their connection."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random

from tests.chaos.api_processes import greet
from tests.chaos.client import Connection, Reply
from tests.chaos.harness import Crowd, Series, answers
from tests.chaos.oracle import Case
from tests.server.conftest import RunningServer

_RENEW_SHARE = 0.1  # of answers after which a client takes another connection


class LocatedCrowd(Crowd):
    """A `Crowd` whose clients change connections now and then, so that these spread evenly.

    Args:
        workers: API processes of the server.

    Attributes:
        held: connections of each API process, by its process ID.
        lost_at: requests without an answer, by the process that had accepted their connection.
        failed_at: answers with a status that is right for no request, likewise.
    """

    def __init__(
        self,
        server: RunningServer,
        workers: int,
        draw: Callable[[Random], Case],
        allowed: Iterable[int] = (),
        pause: float = 0.2,
    ) -> None:
        super().__init__(server.port, draw, allowed, pause=pause)
        self.held: Counter[int] = Counter()
        self.lost_at: Counter[int] = Counter()
        self.failed_at: Counter[int] = Counter()
        self._server = server
        self._workers = workers
        self._owners: dict[Connection, int] = {}

    def most_held(self, clients: int) -> int:
        """The most connections that one process has while `is_balanced`."""
        return -(-clients // self._workers) + 1

    def is_balanced(self, clients: int) -> bool:
        """Whether every API process has connections, and none has many more than the others."""
        processes = self._server.api_processes()
        held = [self.held[pid] for pid in processes]
        return (
            len(processes) == self._workers
            and min(held) > 0
            and max(held) <= self.most_held(clients)
        )

    async def connect(self) -> Connection:
        """A connection of which the owner is known."""
        while True:
            connection = await Connection.open(self.port)
            pid = await greet(self._server, connection)
            if pid:
                self._owners[connection] = pid
                self.held[pid] += 1
                return connection
            connection.close()
            await asyncio.sleep(self.pause)

    def disconnect(self, connection: Connection) -> None:
        """Close a connection."""
        self.held[self._owners.pop(connection)] -= 1
        super().disconnect(connection)

    def on_lost(self, connection: Connection, request_id: str) -> None:
        """Count a request without an answer."""
        super().on_lost(connection, request_id)
        self.lost_at[self._owners[connection]] += 1

    def on_reply(self, connection: Connection, case: Case, reply: Reply) -> bool:
        """Count an answer; whether the client keeps its connection."""
        if reply.status not in (200, 503):
            self.failed_at[self._owners[connection]] += 1
        keep = super().on_reply(connection, case, reply)
        return keep and self.random.random() > _RENEW_SHARE

    def uncounted(self, before: Series, after: Series) -> int:
        """Answers that the server has not counted."""
        return self._difference(before, after)[0]

    def overcounted(self, before: Series, after: Series) -> int:
        """Requests that the server has counted, beyond the answers and the unanswered requests."""
        return max(0, self._difference(before, after)[1] - len(self.tally.unanswered))

    def _difference(self, before: Series, after: Series) -> tuple[int, int]:
        there = answers(after) - answers(before)
        routes = {route for route, _ in self.tally.answered}
        for key in [key for key in there if key[0] not in routes]:
            del there[key]
        here = self.tally.answered
        return sum((here - there).values()), sum((there - here).values())
