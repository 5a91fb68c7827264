"""The engines, as one API process sees them: their models, and the links to those that are ready.

Another process starts and watches them, and says when one is up, has ended, or is given up; and
which generation of them serves.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

from server.engine_client.generation import Generation
from server.engine_client.link import EngineLink
from server.engine_client.slots import SlotShare
from server.ipc.board import Board, BoardSize
from server.ipc.control import EngineUp, Serving
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
        on_models: called with the served models whenever they, or their devices, have changed.

    Attributes:
        board: what all processes know of one another.
        worker, workers: index of this API process, and number of all of them.
        slots: usable when the first engine is up.
        serving: the generation to which requests belong that arrive now.
        before_jobs: awaited with the models of an engine before the first job to it.
        on_lost: called with the index of an engine whose channel has closed: its process has ended,
            or it has sent what is no answer and has to be ended.
        on_released: called with the number of a generation that no request needs any more.
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
        self.before_jobs: Callable[[Iterable[ModelInfo]], Awaitable[None]] | None = None
        self.on_lost: Callable[[int], None] | None = None
        self.on_released: Callable[[int], None] | None = None
        self._on_models = on_models
        self.serving = Generation(0, tuple(range(size.engines)))
        self._generations = {0: self.serving}
        self._was_ready = asyncio.Event()

    @property
    def models(self) -> dict[str, ModelInfo]:
        """The served models, by name, the default first; they stay while engines restart."""
        return self.serving.models

    @property
    def links(self) -> Mapping[int, EngineLink]:
        """The links to the engines that serve and are ready, by the index of the engine."""
        return self.serving.links

    @property
    def ready(self) -> bool:
        """Whether this process can send jobs to at least one engine."""
        return bool(self.links)

    @property
    def all_ready(self) -> bool:
        """Whether every API process can send jobs to an engine to which this one can."""
        return any(self.board.engines[engine].ready for engine in self.links)

    @property
    def given_up(self) -> bool:
        """Whether all engines are given up, so that none will ever take jobs again."""
        return self.serving.all_given_up

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
            for engine in self.serving.engines
            if engine not in self.serving.given_up
        ]
        return max(1.0, min(waits, default=0.0) - time.monotonic())

    def generation(self, number: int | None) -> Generation:
        """Return a generation; for None the one that serves.

        That of a request which is admitted is always there. Raises `KeyError` for others.
        """
        return self.serving if number is None else self._generations[number]

    def serve(self, serving: Serving) -> None:
        """Let requests that arrive from now on be for the models of another generation."""
        before = self.serving
        generation = self._generations.setdefault(
            serving.generation, Generation(serving.generation)
        )
        generation.engines = serving.engines
        generation.aliases = serving.aliases
        self.serving = generation
        self._update_models(generation)
        if generation is not before:
            self._release_unused(before)

    def join(self, generation: Generation) -> None:
        """Count one more hold on a slot for a job of ``generation``."""
        generation.leases += 1

    def leave(self, generation: Generation) -> None:
        """Count one hold less."""
        generation.leases -= 1
        if generation is not self.serving:
            self._release_unused(generation)

    async def engine_up(self, up: EngineUp, connection: socket.socket) -> None:
        """Send jobs to an engine from now on, over ``connection``, which this object owns.

        If the engine ends meanwhile, close ``connection`` and do no more.
        """
        self.engine_ended(up.engine)  # of a process that was up before, no slot stays taken
        generation = self._generations.setdefault(up.generation, Generation(up.generation))
        generation.opening[up.engine] = up
        generation.memory = self.slots.map(up.slot_bytes, up.slot_offset)
        try:
            if self.before_jobs is not None:
                await self.before_jobs(up.models)
        except BaseException:
            connection.close()
            raise
        if generation.opening.get(up.engine) is not up:
            connection.close()
            return
        generation.reports[up.engine] = up.models
        self._update_models(generation)
        await self._open_link(generation, up, connection)

    async def _open_link(
        self, generation: Generation, up: EngineUp, connection: socket.socket
    ) -> None:
        link = EngineLink(
            up.engine,
            up.cost_models,
            self.slots,
            retry_after=partial(self._restart_seconds, up.engine),
            on_lost=partial(self._lose, generation),
        )
        await link.open(connection)
        if generation.opening.pop(up.engine, None) is not up:
            link.engine_ended()
        elif link.ready:
            generation.links[up.engine] = link
            if generation is self.serving:
                self._was_ready.set()

    def engine_ended(self, engine: int) -> None:
        """Free the slots that ``engine`` held, whose process has ended."""
        for generation in list(self._generations.values()):
            generation.opening.pop(engine, None)
            for links in (generation.links, generation.lost):
                if engine in links:
                    links.pop(engine).engine_ended()
            if generation.unused and generation is not self.serving:
                del self._generations[generation.number]

    def engine_given_up(self, engine: int) -> None:
        """Do as `engine_ended`, and do not list the devices of ``engine`` any more."""
        self.engine_ended(engine)
        for generation in self._generations.values():
            if generation.has(engine):
                generation.given_up.add(engine)
                generation.reports.pop(engine, None)
                self._update_models(generation)

    def close(self) -> None:
        """Close all links; jobs that are not answered fail."""
        for generation in self._generations.values():
            for link in generation.links.values():
                link.close()
            generation.links.clear()

    def _update_models(self, generation: Generation) -> None:
        """Combine the models of all engines that are not given up, and report those that serve."""
        if generation.update_models() and generation is self.serving:
            self._on_models(tuple(generation.models.values()))

    def _restart_seconds(self, engine: int) -> float:
        """Return the seconds until ``engine``, which is lost, may be ready again."""
        remaining = self.board.engines[engine].expected_ready - time.monotonic()
        return remaining if remaining > 0 else _RESTART_SECONDS

    def _lose(self, generation: Generation, link: EngineLink) -> None:
        """Keep a link whose channel has closed until its process has ended."""
        generation.links.pop(link.engine, None)
        generation.lost[link.engine] = link
        if self.on_lost is not None and not generation.released:
            self.on_lost(link.engine)

    def _release_unused(self, generation: Generation) -> None:
        """Report that no request needs a generation any more which does not serve."""
        if generation.leases or generation.released:
            return
        generation.released = True
        if self.on_released is not None:
            self.on_released(generation.number)
        if generation.unused:
            self._generations.pop(generation.number, None)
