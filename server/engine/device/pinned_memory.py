"""How pixels reach a GPU: through page-locked memory, so that the copy runs beside the host's work."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class PinnedMemory:
    """Two page-locked buffers, used in turns: the next batch is gathered into one while the other is copied.

    They are kept for all batches: locking pages anew for each would cost more than the copy does.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._locked = [torch.empty(0, dtype=torch.uint8) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]
        self._turn = 0

    def room(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Page-locked memory for the pixels of the next batch; the host waits for the last copy out of it only."""
        size = math.prod(shape)
        if self._locked[self._turn].numel() < size:
            self._locked[self._turn] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        else:
            self._copied[self._turn].synchronize()
        room: npt.NDArray[np.uint8] = self._locked[self._turn][:size].view(shape).numpy()
        return room

    def copy(self, pixels: npt.NDArray[np.uint8], into: Tensor) -> Tensor:
        """Copy ``pixels``, which may lie in `room`, to ``into``, uint8 of the same shape on the device."""
        if pixels.ctypes.data != self._locked[self._turn].data_ptr():
            np.copyto(self.room(pixels.shape), pixels)
        into.copy_(self._locked[self._turn][: pixels.size].view(pixels.shape), non_blocking=True)
        self._copied[self._turn].record(torch.cuda.current_stream(self._device))
        self._turn = 1 - self._turn
        return into
