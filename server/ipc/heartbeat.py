"""The header page: what an engine shows of itself without being asked, in memory that both processes map.

A message says what an engine did; a page says what it is doing, also when it cannot send messages
any more.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BEAT_SECONDS = 0.5
_BEAT, _BEGAN, _PREDICTED, _RESIDENT, _LIMIT = range(5)


@dataclass(frozen=True)
class Heartbeat:
    """One reading of the page. Times are ``time.monotonic()`` seconds, 0 where there is none.

    Attributes:
        beat: when the engine's heart beat last.
        began: when the batch that runs now began.
        predicted: how many seconds that batch should take.
        resident: bytes of memory that the engine process occupies.
        batch_limit: most images that it takes in one batch now.
    """

    beat: float = 0.0
    began: float = 0.0
    predicted: float = 0.0
    resident: int = 0
    batch_limit: int = 0


class HeartbeatPage:
    """The mapped page: aligned numbers, each with one writer, so that no reader ever sees half of one.

    Args:
        descriptor: a file of `SIZE` bytes.
    """

    SIZE = mmap.PAGESIZE

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, self.SIZE)
        self._values: npt.NDArray[np.float64] = np.frombuffer(self._map, np.float64)

    def beat(self, now: float, resident: int) -> None:
        """The engine lives. Called by its heart."""
        self._values[_RESIDENT] = resident
        self._values[_BEAT] = now

    def begin(self, now: float, predicted: float) -> None:
        """A batch begins. Called by the engine's loop, as is `end`."""
        self._values[_PREDICTED] = predicted
        self._values[_BEGAN] = now

    def end(self) -> None:
        """No batch runs."""
        self._values[_BEGAN] = 0.0

    def set_batch_limit(self, images: int) -> None:
        """Batches have ``images`` at most from now on. Called by the engine's loop."""
        self._values[_LIMIT] = images

    def read(self) -> Heartbeat:
        """What the page shows now."""
        beat, began, predicted, resident, limit = self._values[:5].tolist()
        return Heartbeat(beat, began, predicted, int(resident), int(limit))
