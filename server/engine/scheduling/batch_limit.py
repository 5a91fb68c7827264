"""How many images a batch may have once memory has run out. Pure: no torch, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_PATIENCE = 32
MOST_PATIENCE = 1024  # full batches
_STEPS = 8


@dataclass
class BatchLimit:
    """Down at once to what fitted; up again in steps, each after a number of full batches that went well.

    Every failure doubles that number: where memory is short for good, running out of it, which
    costs a batch several passes, becomes rare; where another process took it for a while, the limit
    comes back.

    Attributes:
        most: what the settings allow.
        now: what is allowed now.
    """

    most: int
    now: int = field(init=False)
    _patience: int = field(default=FIRST_PATIENCE // 2, init=False)
    _went_well: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.now = self.most

    def ran_out(self, fitted: int) -> bool:
        """Memory ran out, and ``fitted`` images at once were the most that then went well. Whether `now` changed."""
        before = self.now
        self.now = max(1, min(fitted, self.now))
        self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._went_well = 0
        return self.now != before

    def went_well(self, images: int) -> bool:
        """A batch of ``images`` ran without running out of memory. Whether `now` changed."""
        if self.now == self.most or images < self.now:  # a small batch says nothing of what fits
            return False
        self._went_well += 1
        if self._went_well < self._patience:
            return False
        self.now = min(self.most, self.now + max(1, self.most // _STEPS))
        self._went_well = 0
        return True
