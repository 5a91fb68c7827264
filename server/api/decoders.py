"""The processes that decode sounds and videos: they start with the first model of either."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from server.decoding.pool import DecodePool
from server.errors import ConfigError, EngineStartError, Overloaded, Refusal
from server.ipc.messages import ModelInfo
from server.logs import log_step
from server.media.decoded import Decoded
from server.media.modality import Modality
from server.media.transforms import MediaTransform

log = logging.getLogger("tome.server")


@dataclass(eq=False)
class _Running:
    """A pool whose workers run.

    Attributes:
        bodies: how many are decoded, or wait for it.
        idle: set while there are none.
    """

    pool: DecodePool
    bodies: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def decode(self, body: bytes, transform: MediaTransform) -> Decoded:
        self.bodies += 1
        self.idle.clear()
        try:
            return await self.pool.decode(body, transform)
        finally:
            self.bodies -= 1
            if not self.bodies:
                self.idle.set()


class Decoders:
    """The decode workers of a server; none run where all models take images.

    When a reload of the catalog brings the first model of a further modality, other workers, which
    can decode that as well, take the place of those that run.

    Args:
        create_pool: returns a pool that is not started yet.
    """

    def __init__(self, create_pool: Callable[[], DecodePool]) -> None:
        self._create_pool = create_pool
        self._lock = asyncio.Lock()
        self._current: _Running | None = None
        self._pools: list[DecodePool] = []  # that may have processes
        self._ending: set[asyncio.Task[None]] = set()

    async def start_for(self, models: Iterable[ModelInfo]) -> None:
        """Start the workers and wait until they are ready, if ``models`` need them.

        Raises:
            EngineStartError: they cannot be started.
        """
        wanted = {model.modality for model in models} - {Modality.IMAGE}
        if not wanted:
            return
        async with self._lock:  # several engines become ready at about the same time
            before = self._current
            known = frozenset[Modality]() if before is None else before.pool.modalities
            if wanted <= known:
                return
            pool = self._create_pool()
            self._pools.append(pool)
            await self._start(pool, wanted | known)
            self._current = _Running(pool)
            if before is not None:
                ending = asyncio.create_task(self._end(before))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)

    async def _start(self, pool: DecodePool, modalities: set[Modality]) -> None:
        try:
            nouns = " and ".join(f"{modality.noun}s" for modality in sorted(modalities))
            with log_step(log, f"starting the processes that decode {nouns}"):
                await pool.start(modalities)
        except ConfigError as error:
            self._pools.remove(pool)
            raise EngineStartError(str(error), explained=True) from error

    async def decode(self, body: bytes, transform: MediaTransform) -> Decoded:
        """Return the windows of ``body``; see `DecodePool.decode`."""
        if self._current is None:
            raise Overloaded("no process decodes yet", reason=Refusal.NOT_READY, retry_after=1)
        return await self._current.decode(body, transform)

    async def _end(self, running: _Running) -> None:
        """End workers that others have replaced, once nothing is left that they decode."""
        if running.bodies:
            await running.idle.wait()
        await running.pool.stop()
        self._pools.remove(running.pool)

    async def stop(self) -> None:
        """End the workers."""
        for ending in self._ending:
            ending.cancel()
        await asyncio.gather(
            *self._ending, *(pool.stop() for pool in self._pools), return_exceptions=True
        )

    def kill(self) -> None:
        """Kill the workers, with or without a running event loop."""
        for pool in self._pools:
            pool.kill()
