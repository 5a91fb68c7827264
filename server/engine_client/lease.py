"""One place in shared memory, as a request sees it: write an image there, have it run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from server.engine_client.process import Result
from server.ipc.messages import OutputKind
from server.ipc.shared_memory import Slots
from tome_core.schedule import Schedule


class Lease:
    """One slot, held by one request from admission on; see `EnginePool.lease`.

    Args:
        submit: `EnginePool.submit`.

    Attributes:
        submitted: from then on the slot is the engine's to give back.
    """

    def __init__(
        self, slots: Slots, slot: int, submit: Callable[..., asyncio.Future[Result]]
    ) -> None:
        self._slots = slots
        self._slot = slot
        self._submit = submit
        self._normalised = False
        self.submitted = False

    def write(self, pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> None:
        """Copy an image ``(C, H, W)`` into the slot: decoded, uint8, or as the model takes it, float32."""
        self._normalised = pixels.dtype != np.uint8
        dtype = np.float32 if self._normalised else np.uint8
        np.copyto(self._slots.view(self._slot, pixels.shape, dtype), pixels)

    async def run(
        self,
        model: str,
        choices: Sequence[Schedule],
        top_k: int,
        deadline: float | None = None,
        want: OutputKind = "classes",
    ) -> Result:
        """Submit the image and wait for its outcome. Cancelling the wait cancels the job.

        Args:
            choices: the schedule to run it under, or several, mildest first, of which the engine
                takes one.

        Raises:
            EngineLost: there is no engine, or it ended first.
        """
        future = self._submit(self._slot, model, choices, top_k, deadline, want, self._normalised)
        self.submitted = True
        return await future
