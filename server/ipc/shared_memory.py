"""What all processes of a server map: slots, each for one decoded image.

The memory is an anonymous file, which the other processes inherit from the parent process as a file
descriptor. It has no name: the kernel frees it when all of them have ended, however they end, and
it does not use the /dev/shm of a container, which is small. The kernel allocates a page when it is
first written.

Only the API process that a slot belongs to assigns it. An engine reads the slot that a job names.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_PAGE = mmap.PAGESIZE

Pixel = TypeVar("Pixel", np.uint8, np.float32)


def create_memory(name: str = "tome-slots", size: int = 0) -> int:
    """Return a descriptor of an anonymous file, which child processes can inherit.

    Args:
        name: name of the file in tools that list the open files of a process.
        size: number of bytes, all zero.
    """
    if sys.platform == "linux":
        descriptor = os.memfd_create(name, flags=0)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def largest_input_bytes(sizes: Iterable[tuple[int, int, int]]) -> int:
    """Return the bytes of the largest of inputs ``(C, H, W)``, normalised as float32."""
    return max(_bytes(size, np.float32) for size in sizes)


def _stride(slot_bytes: int) -> int:
    """Return the bytes from one slot to the next: a whole number of pages."""
    return math.ceil(slot_bytes / _PAGE) * _PAGE


def size_slots(descriptor: int, count: int, slot_bytes: int) -> None:
    """Give the memory of ``count`` slots its size. Processes map it then.

    The parent process does so when an engine has reported how large a slot must be.
    """
    os.ftruncate(descriptor, count * _stride(slot_bytes))


def describe_slots(count: int, slot_bytes: int) -> str:
    """Return a sentence about the memory of ``count`` slots. Only what inputs fill is allocated."""
    size = _stride(slot_bytes)
    return f"slots: {count} of {size:,} bytes, {round(count * size / 1e6):,} MB at most"


class Slots:
    """The mapped memory, as ``count`` slots of at least ``slot_bytes`` bytes.

    Args:
        descriptor: the file from `create_memory`, of the size that `size_slots` gave it.

    Attributes:
        array: all slots, ``(count, stride)``, where ``stride`` is a whole number of pages.
    """

    def __init__(self, descriptor: int, count: int, slot_bytes: int) -> None:
        stride = _stride(slot_bytes)
        self._map = mmap.mmap(descriptor, count * stride)
        memory: npt.NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.array = memory.reshape(count, stride)

    def view(self, slot: int, shape: tuple[int, ...], dtype: type[Pixel]) -> npt.NDArray[Pixel]:
        """Return the first bytes of ``slot`` as a writable array of ``shape``."""
        size = _bytes(shape, dtype)
        content = self.array[slot, :size]
        return content.view(dtype).reshape(shape)


def _bytes(shape: tuple[int, ...], dtype: type[Pixel]) -> int:
    """Return the bytes of an array of ``shape``."""
    return math.prod(shape) * np.dtype(dtype).itemsize
