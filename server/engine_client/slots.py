"""The slots in shared memory: which of them are free, and one image's hold on one."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from server.engine_client.process import Result
from server.ipc.messages import Job, OutputKind
from server.ipc.shared_memory import Slots, create_memory
from tome_core.schedule import Schedule

_job_ids = itertools.count(1)


class SlotAllocator:
    """Assigns the slots that all engines share.

    Attributes:
        count: number of all slots.
        free: the slots that no image holds.
        descriptor: of the shared memory, which the engines inherit.
        memory: the mapped slots; set by `map`.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = list(range(count))
        self.descriptor = create_memory()
        self.memory: Slots

    @property
    def used(self) -> int:
        """Number of slots that are not free."""
        return self.count - len(self.free)

    def map(self, slot_bytes: int) -> None:
        """Give the slots their size, and map them."""
        self.memory = Slots(self.descriptor, self.count, slot_bytes, create=True)


class Lease:
    """One image's hold on a slot, from `Router.lease`: write the image, then run it.

    Args:
        submit: `Router.submit`.

    Attributes:
        submitted: whether an engine has the job; then the engine's answer frees the slot.
    """

    def __init__(
        self,
        memory: Slots,
        slot: int,
        submit: Callable[[Job], asyncio.Future[Result]],
    ) -> None:
        self._memory = memory
        self._slot = slot
        self._submit = submit
        self._normalised = False
        self.submitted = False

    def write(self, pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> None:
        """Copy an image ``(C, H, W)`` into the slot: decoded, uint8; or normalised, float32."""
        self._normalised = pixels.dtype != np.uint8
        dtype = np.float32 if self._normalised else np.uint8
        np.copyto(self._memory.view(self._slot, pixels.shape, dtype), pixels)

    async def run(
        self,
        model: str,
        choices: Sequence[Schedule],
        top_k: int,
        deadline: float | None = None,
        output_kind: OutputKind = "classes",
        request_id: str = "",
    ) -> Result:
        """Submit the image and wait for its result. Cancelling the wait cancels the job.

        The arguments are those of `Job`.

        Raises:
            EngineLost: no engine is ready, or the engine ended before the image was run.
        """
        job = Job(
            id=next(_job_ids),
            slot=self._slot,
            model=model,
            choices=tuple(choices),
            top_k=top_k,
            submitted=time.monotonic(),
            deadline=deadline,
            output_kind=output_kind,
            normalised=self._normalised,
            request_id=request_id,
        )
        future = self._submit(job)
        self.submitted = True
        return await future
