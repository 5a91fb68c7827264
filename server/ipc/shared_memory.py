"""What both processes map: slots, each for one decoded image, and the state of an engine.

The memory is an anonymous file, which the engine process inherits as a file descriptor. It has no
name: the kernel frees it when both processes have ended, however they end, and it does not use the
/dev/shm of a container, which is small. The kernel allocates a page when it is first written.

Only the API process assigns slots. The engine reads the slot that a job names. The API process
reads the heartbeat page at any time, also while the engine hangs and sends no messages.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_PAGE = mmap.PAGESIZE
BEAT_SECONDS = 0.5  # between two heartbeats

# Positions of the values in the page.
_BEAT = 0
_BEGAN = 1
_PREDICTED = 2
_RESIDENT = 3
_LIMIT = 4
_FIELDS = 5

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


def describe_slots(count: int, slot_bytes: int) -> str:
    """Return a sentence about the memory of ``count`` slots. Only what inputs fill is allocated."""
    size = _stride(slot_bytes)
    return f"slots: {count} of {size:,} bytes, {round(count * size / 1e6):,} MB at most"


class Slots:
    """The mapped memory, as ``count`` slots of at least ``slot_bytes`` bytes.

    Args:
        descriptor: the file from `create_memory`.
        create: whether to set the size of the file. The API process does so when an engine has
            reported how large a slot must be.

    Attributes:
        array: all slots, ``(count, stride)``, where ``stride`` is a whole number of pages.
    """

    def __init__(
        self,
        descriptor: int,
        count: int,
        slot_bytes: int,
        *,
        create: bool = False,
    ) -> None:
        stride = _stride(slot_bytes)
        if create:
            os.ftruncate(descriptor, count * stride)
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


@dataclass(frozen=True)
class Heartbeat:
    """The state of an engine at one time. Times are ``time.monotonic()`` seconds; 0 means none.

    Attributes:
        beat: time of the last heartbeat.
        batch_started: start time of the current batch; 0 if no batch runs.
        predicted_seconds: predicted duration of the current batch.
        resident_bytes: resident memory of the engine process.
        batch_limit: most images that the engine runs in one batch now.
    """

    beat: float = 0.0
    batch_started: float = 0.0
    predicted_seconds: float = 0.0
    resident_bytes: int = 0
    batch_limit: int = 0


class HeartbeatPage:
    """The mapped page. The engine process writes it, the API process reads it, without a lock.

    Every value is an aligned 8-byte number with a single writer, so that a reader never sees a
    value that is written in part.

    Args:
        descriptor: a file of `SIZE` bytes.
    """

    SIZE = _PAGE

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, self.SIZE)
        self._values: npt.NDArray[np.float64] = np.frombuffer(self._map, np.float64)

    def beat(self, now: float, resident_bytes: int) -> None:
        """Record a heartbeat. Called by the engine's heartbeat thread.

        Args:
            now: ``time.monotonic()`` seconds.
            resident_bytes: resident memory of the engine process.
        """
        self._values[_RESIDENT] = resident_bytes
        self._values[_BEAT] = now

    def begin_batch(self, now: float, predicted_seconds: float) -> None:
        """Record the start of a batch. Called by the engine's loop."""
        self._values[_PREDICTED] = predicted_seconds
        self._values[_BEGAN] = now

    def end_batch(self) -> None:
        """Record that no batch runs. Called by the engine's loop."""
        self._values[_BEGAN] = 0.0

    def set_batch_limit(self, images: int) -> None:
        """Record the most images of one batch. Called by the engine's loop."""
        self._values[_LIMIT] = images

    def read(self) -> Heartbeat:
        """Return the current state."""
        values = self._values[:_FIELDS].tolist()
        return Heartbeat(
            beat=values[_BEAT],
            batch_started=values[_BEGAN],
            predicted_seconds=values[_PREDICTED],
            resident_bytes=int(values[_RESIDENT]),
            batch_limit=int(values[_LIMIT]),
        )
