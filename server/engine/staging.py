"""How pixels reach a GPU: through one page-locked buffer, so that the copy runs beside the host's work."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Staging:
    """One page-locked buffer for all batches: locking pages anew for each would cost more than the copy does."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._locked = torch.empty(0, dtype=torch.uint8)
        self._copied = torch.cuda.Event()

    def copy(self, pixels: npt.NDArray[np.uint8], into: Tensor) -> Tensor:
        """Copy ``pixels`` to ``into``, uint8 of the same shape on the device; the host waits for the last copy only."""
        if self._locked.numel() < pixels.size:
            self._locked = torch.empty(pixels.size, dtype=torch.uint8, pin_memory=True)
        else:
            self._copied.synchronize()
        locked = self._locked[: pixels.size].view(pixels.shape)
        np.copyto(locked.numpy(), pixels)
        into.copy_(locked, non_blocking=True)
        self._copied.record(torch.cuda.current_stream(self._device))
        return into
