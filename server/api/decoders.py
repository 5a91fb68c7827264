"""The processes that decode sounds and videos: they start with the first model of either."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from server.decoding.pool import DecodePool
from server.errors import ConfigError, EngineStartError
from server.ipc.messages import ModelInfo
from server.logs import log_step
from server.media.modality import Modality

log = logging.getLogger("tome.server")


class Decoders:
    """The decode workers of a server; none run where all models take images.

    Args:
        pool: not started yet.
    """

    def __init__(self, pool: DecodePool) -> None:
        self._pool = pool
        self._lock = asyncio.Lock()
        self._started = False

    async def start_for(self, models: Iterable[ModelInfo]) -> None:
        """Start the workers and wait until they are ready, if ``models`` need them.

        Raises:
            EngineStartError: they cannot be started.
        """
        modalities = {model.modality for model in models} - {Modality.IMAGE}
        if not modalities:
            return
        async with self._lock:  # several engines become ready at about the same time
            if self._started:
                return
            try:
                nouns = " and ".join(f"{modality.noun}s" for modality in sorted(modalities))
                with log_step(log, f"starting the processes that decode {nouns}"):
                    await self._pool.start(modalities)
            except ConfigError as error:
                raise EngineStartError(str(error), explained=True) from error
            self._started = True

    async def stop(self) -> None:
        """End the workers."""
        await self._pool.stop()

    def kill(self) -> None:
        """Kill the workers, with or without a running event loop."""
        self._pool.kill()
