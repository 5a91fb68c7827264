"""Slots: fixed pieces of memory that both processes map, each holding one decoded image.

The memory is one anonymous file, inherited by the engine as a descriptor. It has no name, so
nothing is left behind whichever process dies first, and a container's small /dev/shm does not
matter. Pages that no image has touched cost nothing. Only the API process hands slots out; the
engine reads what a job points to.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_PAGE = mmap.PAGESIZE

Pixel = TypeVar("Pixel", np.uint8, np.float32)


def create_memory(name: str = "tome-slots", size: int = 0) -> int:
    """A descriptor of an anonymous file of ``size`` zero bytes that child processes can inherit.

    Args:
        name: what tools that list a process's files show.
    """
    if sys.platform == "linux":
        descriptor = os.memfd_create(name, flags=0)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class Slots:
    """The mapped memory, as ``count`` pieces of ``slot_bytes``.

    The API sizes the file (``create=True``) once the engine has said how large a slot must be.
    """

    def __init__(
        self, descriptor: int, count: int, slot_bytes: int, *, create: bool = False
    ) -> None:
        stride = -(-slot_bytes // _PAGE) * _PAGE
        if create:
            os.ftruncate(descriptor, count * stride)
        self._map = mmap.mmap(descriptor, count * stride)
        self.array: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8).reshape(
            count, stride
        )

    def view(self, slot: int, shape: tuple[int, ...], dtype: type[Pixel]) -> npt.NDArray[Pixel]:
        """The first bytes of ``slot`` as a writable array of ``shape``."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.array[slot, :size].view(dtype).reshape(shape)

    def gather(
        self, slots: list[int], shape: tuple[int, ...], dtype: type[Pixel]
    ) -> npt.NDArray[Pixel]:
        """A copy of several slots in one array ``(len(slots), *shape)``."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.array[slots, :size].view(dtype).reshape(len(slots), *shape)

    def gather_into(self, slots: list[int], out: npt.NDArray[np.uint8]) -> None:
        """Copy several slots to ``out``, uint8 ``(len(slots), *shape)``."""
        for row, slot in zip(out, slots, strict=True):
            np.copyto(row, self.view(slot, row.shape, np.uint8))
