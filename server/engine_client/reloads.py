"""Reloads of the catalog, as an API process sees them: it may want one, and hears of all."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from server.ipc.control import ReloadEnded, ReloadWanted
from server.ipc.reload import ReloadReport, ReloadStatus


class Reloads:
    """Asks the parent process for reloads.

    Attributes:
        status: what the parent said last.
        send: sends the wish to the parent; set before the first request.
    """

    def __init__(self) -> None:
        self.status = ReloadStatus()
        self.send: Callable[[ReloadWanted], None]
        self._tickets = itertools.count()
        self._waiting: dict[int, asyncio.Future[ReloadReport]] = {}

    async def reload(self) -> ReloadReport:
        """Have the catalog read again, and return what came of it; see `EngineGenerations.reload`.

        A cancellation ends the wait, not the reload.
        """
        ticket = next(self._tickets)
        self._waiting[ticket] = asyncio.get_running_loop().create_future()
        try:
            self.send(ReloadWanted(ticket))
            return await self._waiting[ticket]
        finally:
            del self._waiting[ticket]

    def end(self, ended: ReloadEnded) -> None:
        """Give a report to the request that waits for it."""
        waiting = self._waiting.get(ended.ticket)
        if waiting is not None and not waiting.done():
            waiting.set_result(ended.report)
