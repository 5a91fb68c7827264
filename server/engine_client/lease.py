"""A slot in shared memory, as one request uses it: write an image, then run it."""

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
    """One request's hold on a slot, from `EnginePool.lease`.

    Args:
        submit: `EnginePool.submit`.

    Attributes:
        submitted: whether the engine has the job; then the engine's answer frees the slot.
    """

    def __init__(
        self,
        slots: Slots,
        slot: int,
        submit: Callable[..., asyncio.Future[Result]],
    ) -> None:
        self._slots = slots
        self._slot = slot
        self._submit = submit
        self._normalised = False
        self.submitted = False

    def write(self, pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> None:
        """Copy an image ``(C, H, W)`` into the slot: decoded, uint8; or normalised, float32."""
        self._normalised = pixels.dtype != np.uint8
        dtype = np.float32 if self._normalised else np.uint8
        np.copyto(self._slots.view(self._slot, pixels.shape, dtype), pixels)

    async def run(
        self,
        model: str,
        choices: Sequence[Schedule],
        top_k: int,
        deadline: float | None = None,
        output_kind: OutputKind = "classes",
    ) -> Result:
        """Submit the image and wait for its result. Cancelling the wait cancels the job.

        Args:
            choices: the schedule of the image; or several from which the engine chooses, the one
                that merges least first.
            top_k: number of classes to return; 0 for other outputs.
            deadline: ``time.monotonic()`` seconds; None for the default target.

        Raises:
            EngineLost: no engine is ready, or the engine ended before the image was run.
        """
        future = self._submit(
            self._slot,
            model,
            choices,
            top_k,
            deadline,
            output_kind,
            self._normalised,
        )
        self.submitted = True
        return await future
