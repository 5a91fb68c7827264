"""Limits the images of a batch after memory has run out. Pure: no torch, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_BACKOFF = 32  # full batches without a failure before the limit rises, after one failure
MAX_BACKOFF = 1024
_STEPS = 8  # in which the limit rises from 0 to its maximum


@dataclass
class BatchLimit:
    """Falls at once to the size that fits; rises in steps, each after a number of full batches.

    Every failure doubles that number (exponential back-off). Where memory is short permanently,
    running out of it becomes rare, which costs a batch several passes each time. Where another
    process used the memory for a while, the limit recovers.

    Attributes:
        maximum: images that the settings allow.
        current: images that are allowed now.
    """

    maximum: int
    current: int = field(init=False)
    _backoff: int = field(default=FIRST_BACKOFF // 2, init=False)
    _full_batches: int = field(default=0, init=False)  # since the limit changed last

    def __post_init__(self) -> None:
        self.current = self.maximum

    def out_of_memory(self, fitted: int) -> bool:
        """Record that memory ran out. Returns whether `current` changed.

        Args:
            fitted: most images that then ran together successfully.
        """
        before = self.current
        self.current = max(1, min(fitted, self.current))
        self._backoff = min(2 * self._backoff, MAX_BACKOFF)
        self._full_batches = 0
        return self.current != before

    def succeeded(self, images: int) -> bool:
        """Record that memory sufficed for ``images``. Returns whether `current` changed."""
        is_full = images >= self.current  # a smaller batch does not show what fits
        if self.current == self.maximum or not is_full:
            return False
        self._full_batches += 1
        if self._full_batches < self._backoff:
            return False
        step = max(1, self.maximum // _STEPS)
        self.current = min(self.maximum, self.current + step)
        self._full_batches = 0
        return True
