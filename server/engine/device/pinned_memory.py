"""Pinned (page-locked) host memory, from which the copy to a GPU runs asynchronously."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

InputArray = npt.NDArray[Any]


class PinnedMemory:
    """Two pinned buffers in turn: the host fills one while the device copies the other.

    The buffers are reused for all batches, since pinning memory takes longer than the copy.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._current = _PinnedBuffer()
        self._other = _PinnedBuffer()

    def next_buffer(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.uint8,
    ) -> InputArray:
        """Return pinned memory of ``shape``, once the device has copied its last contents."""
        self._current.reserve(math.prod(shape) * dtype.itemsize)
        array: InputArray = self._current.view(shape, dtype).numpy()
        return array

    def copy(self, pixels: InputArray, into: Tensor) -> Tensor:
        """Copy ``pixels`` to ``into``, of the same shape and dtype on the device; return ``into``.

        Pixels that do not lie in the memory of `next_buffer` are copied there first.
        """
        address = pixels.ctypes.data
        if address != self._current.memory.data_ptr():
            np.copyto(self.next_buffer(pixels.shape, into.dtype), pixels)
        into.copy_(self._current.view(pixels.shape, into.dtype), non_blocking=True)
        stream = torch.cuda.current_stream(self._device)
        self._current.copied.record(stream)
        self._current, self._other = self._other, self._current
        return into


class _PinnedBuffer:
    """One buffer, and the event that marks the end of the last copy out of it."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.copied = torch.cuda.Event()

    def reserve(self, size: int) -> None:
        """Make ``size`` bytes available for writing."""
        if self.memory.numel() < size:
            self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        else:
            self.copied.synchronize()

    def view(self, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return the first bytes as a tensor of ``shape`` and ``dtype``."""
        size = math.prod(shape) * dtype.itemsize
        return self.memory[:size].view(dtype).view(shape)
