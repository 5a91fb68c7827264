"""The engines, as one API process sees them: their models, and the links to those that are ready.

Another process starts and watches them, and says when one is up, has ended, or is given up.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

from server.engine_client.link import EngineLink
from server.engine_client.served_models import combine
from server.engine_client.slots import SlotShare
from server.ipc.board import Board, BoardSize
from server.ipc.control import EngineUp
from server.ipc.messages import ModelInfo

# A restart is expected to take so long until the parent process has said more: about as long as
# a small model takes on a CPU. Too short a value costs clients one more retry.
_RESTART_SECONDS = 5.0


class Engines:
    """All engines, of which some may be ready, and the slots of this API process.

    Args:
        slots_descriptor: of the shared memory for the slots of all API processes.
        worker: index of this API process.
        max_batch: most images that an engine runs in one batch.
        on_models: called with the served models whenever an engine is up or given up.

    Attributes:
        board: what all processes know of one another.
        worker, workers: index of this API process, and number of all of them.
        slots: usable when the first engine is up.
        models: the served models, by name, the default first; they stay while engines restart.
        before_jobs: awaited with the models of an engine before the first job to it.
        on_lost: called with the index of an engine whose channel has closed: its process has ended,
            or it has sent what is no answer and has to be ended.
    """

    def __init__(
        self,
        board: Board,
        size: BoardSize,
        slots_descriptor: int,
        worker: int,
        max_batch: int,
        on_models: Callable[[tuple[ModelInfo, ...]], None],
    ) -> None:
        self.board = board
        self.worker = worker
        self.workers = size.workers
        self.max_batch = max_batch
        self.slots = SlotShare(slots_descriptor, size.slots, worker, size.workers, board)
        self.models: dict[str, ModelInfo] = {}
        self.before_jobs: Callable[[Iterable[ModelInfo]], Awaitable[None]] | None = None
        self.on_lost: Callable[[int], None] | None = None
        self._on_models = on_models
        self._count = size.engines
        self._reports: dict[int, tuple[ModelInfo, ...]] = {}  # by engine
        self._opening: dict[int, EngineUp] = {}  # engines that are up and have no link yet
        self._links: dict[int, EngineLink] = {}  # those that are ready
        self._lost: dict[int, EngineLink] = {}  # those of processes that may not have ended
        self._given_up: set[int] = set()
        self._was_ready = asyncio.Event()

    @property
    def links(self) -> Mapping[int, EngineLink]:
        """The links to the engines that are ready, by the index of the engine."""
        return self._links

    @property
    def ready(self) -> bool:
        """Whether this process can send jobs to at least one engine."""
        return bool(self._links)

    @property
    def all_ready(self) -> bool:
        """Whether every API process can send jobs to an engine to which this one can."""
        return any(self.board.engines[engine].ready for engine in self._links)

    @property
    def given_up(self) -> bool:
        """Whether all engines are given up, so that none will ever take jobs again."""
        return len(self._given_up) == self._count

    @property
    def queued(self) -> int:
        """Number of jobs of all API processes that engines have not answered."""
        return self.board.submitted

    async def wait_ready(self) -> None:
        """Return when an engine has become ready for the first time."""
        await self._was_ready.wait()

    def ready_in(self) -> float:
        """Return the seconds until the first engine may be ready, by what the board says."""
        waits = [
            self.board.engines[engine].expected_ready
            for engine in range(self._count)
            if engine not in self._given_up
        ]
        return max(1.0, min(waits, default=0.0) - time.monotonic())

    async def engine_up(self, up: EngineUp, connection: socket.socket) -> None:
        """Send jobs to an engine from now on, over ``connection``, which this object owns.

        If the engine ends meanwhile, close ``connection`` and do no more.
        """
        self.engine_ended(up.engine)  # of a process that was up before, no slot stays taken
        self._opening[up.engine] = up
        if not self.models:
            self.slots.map(up.slot_bytes)
        try:
            if self.before_jobs is not None:
                await self.before_jobs(up.models)
        except BaseException:
            connection.close()
            raise
        if self._opening.get(up.engine) is not up:
            connection.close()
            return
        self._reports[up.engine] = up.models
        self._update_models()
        await self._open_link(up, connection)

    async def _open_link(self, up: EngineUp, connection: socket.socket) -> None:
        link = EngineLink(
            up.engine,
            up.cost_models,
            self.slots,
            retry_after=partial(self._restart_seconds, up.engine),
            on_lost=self._lose,
        )
        await link.open(connection)
        if self._opening.pop(up.engine, None) is not up:
            link.engine_ended()
        elif link.ready:
            self._links[up.engine] = link
            self._was_ready.set()

    def engine_ended(self, engine: int) -> None:
        """Free the slots that ``engine`` held, whose process has ended."""
        self._opening.pop(engine, None)
        for links in (self._links, self._lost):
            if engine in links:
                links.pop(engine).engine_ended()

    def engine_given_up(self, engine: int) -> None:
        """Do as `engine_ended`, and do not list the devices of ``engine`` any more."""
        self.engine_ended(engine)
        self._given_up.add(engine)
        self._reports.pop(engine, None)
        if self._reports:
            self._update_models()

    def close(self) -> None:
        """Close all links; jobs that are not answered fail."""
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _update_models(self) -> None:
        """Combine the models of all engines that are not given up, and report them."""
        reports = [models for _, models in sorted(self._reports.items())]
        self.models = {model.name: model for model in combine(reports)}
        self._on_models(tuple(self.models.values()))

    def _restart_seconds(self, engine: int) -> float:
        """Return the seconds until ``engine``, which is lost, may be ready again."""
        remaining = self.board.engines[engine].expected_ready - time.monotonic()
        return remaining if remaining > 0 else _RESTART_SECONDS

    def _lose(self, link: EngineLink) -> None:
        """Keep a link whose channel has closed until its process has ended."""
        self._links.pop(link.engine, None)
        self._lost[link.engine] = link
        if self.on_lost is not None:
            self.on_lost(link.engine)
