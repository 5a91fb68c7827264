"""The heartbeat page: the current state of an engine, in a page of shared memory.

The API process reads it at any time, also while the engine hangs and sends no messages.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BEAT_SECONDS = 0.5  # between two heartbeats

# Positions of the values in the page.
_BEAT = 0
_BEGAN = 1
_PREDICTED = 2
_RESIDENT = 3
_LIMIT = 4
_FIELDS = 5


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

    SIZE = mmap.PAGESIZE

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
