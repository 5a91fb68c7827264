"""What all processes of a server map: slots, each for one decoded image.

The memory is an anonymous file, which the other processes inherit from the parent process as a file
descriptor. It has no name: the kernel frees it when all of them have ended, however they end, and
it does not use the /dev/shm of a container, which is small. The kernel allocates a page when it is
first written.

Only the API process that a slot belongs to assigns it. An engine reads the slot that a job names.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import sys
import tempfile
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

log = logging.getLogger("tome.engine")

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


def size_slots(descriptor: int, count: int, slot_bytes: int, offset: int = 0) -> None:
    """Give the memory of ``count`` slots its size. Processes map it then.

    The parent process does so when an engine has reported how large a slot must be.

    Args:
        offset: where they begin in it.
    """
    os.ftruncate(descriptor, offset + count * _stride(slot_bytes))


class SlotRegion(NamedTuple):
    """Where slots lie in their memory: from ``offset`` on, of ``slot_bytes`` bytes each."""

    offset: int
    slot_bytes: int


class SlotRegions:
    """The regions that the parent process gives to slots: another one when they must be larger.

    Slots of both sizes are in use for a while then, so they have no byte in common.

    Args:
        descriptor: the file.
        count: number of slots of each region.
    """

    def __init__(self, descriptor: int, count: int) -> None:
        self._descriptor = descriptor
        self._count = count
        self._last: SlotRegion | None = None

    def fit(self, slot_bytes: int) -> SlotRegion:
        """Return the region whose slots have at least ``slot_bytes`` bytes; a new one if needed."""
        if self._last is not None and self._last.slot_bytes >= slot_bytes:
            return self._last
        offset = 0 if self._last is None else self._last.offset + self._size(self._last)
        size_slots(self._descriptor, self._count, slot_bytes, offset)
        log.info("%s", describe_slots(self._count, slot_bytes))
        self._last = SlotRegion(offset, slot_bytes)
        return self._last

    def free(self, region: SlotRegion) -> None:
        """Give the memory of a region back to the system, unless its slots are the latest ones.

        Where the system cannot take a part of a file back, it stays.
        """
        if region == self._last or not hasattr(mmap, "MADV_REMOVE"):
            return
        size = self._size(region)
        with mmap.mmap(self._descriptor, size, offset=region.offset) as memory:
            memory.madvise(mmap.MADV_REMOVE)

    def _size(self, region: SlotRegion) -> int:
        return self._count * _stride(region.slot_bytes)


def describe_slots(count: int, slot_bytes: int) -> str:
    """Return a sentence about the memory of ``count`` slots. Only what inputs fill is allocated."""
    size = _stride(slot_bytes)
    return f"slots: {count} of {size:,} bytes, {round(count * size / 1e6):,} MB at most"


class Slots:
    """The mapped memory, as ``count`` slots of at least ``slot_bytes`` bytes.

    Args:
        descriptor: the file from `create_memory`, of the size that `size_slots` gave it.
        offset: where they begin in it.

    Attributes:
        array: all slots, ``(count, stride)``, where ``stride`` is a whole number of pages.
    """

    def __init__(self, descriptor: int, count: int, slot_bytes: int, offset: int = 0) -> None:
        stride = _stride(slot_bytes)
        self._map = mmap.mmap(descriptor, count * stride, offset=offset)
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
