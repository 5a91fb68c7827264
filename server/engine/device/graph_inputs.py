"""Batches of any mix of schedules, as CUDA graphs are given them: what is where, and within which bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from server.engine.device.pinned_memory import PinnedMemory
from tome_core.ragged.plan import BoundedPlan
from tome_core.schedule import Schedule

Starts = npt.NDArray[np.int32]


class GraphInputs:
    """Describes batches, and holds what all graphs read of the one that runs.

    A graph is recorded for a bucket and a level: it serves every batch of which no block gets more
    tokens than it would get of a bucket full of images at this level.

    Args:
        counts: tokens of an image under a schedule, at the input and after each block.
    """

    def __init__(
        self, counts: Callable[[Schedule], tuple[int, ...]], max_batch: int, device: torch.device
    ) -> None:
        self._counts = counts
        shape = len(counts(Schedule.constant(0))), max_batch + 1
        self._starts = torch.zeros(shape, dtype=torch.int32, device=device)
        self._staging = PinnedMemory(device) if device.type == "cuda" else None

    def merges(self, schedule: Schedule) -> bool:
        """Whether an image under it loses any tokens."""
        counts = self._counts(schedule)
        return counts[-1] < counts[0]

    def starts(self, schedules: Sequence[Schedule]) -> Starts:
        """Where each image begins, then how many tokens there are, at the input and after each block.

        ``(depth + 1, max_batch + 1)``: all images that the batch has not begin, and end, where the
        last one ends.
        """
        numbers: dict[Schedule, int] = {}
        kinds = [numbers.setdefault(schedule, len(numbers)) for schedule in schedules]
        counts = np.array([self._counts(schedule) for schedule in numbers], np.int32)
        starts = np.zeros(self._starts.shape, np.int32)
        ends = starts[:, 1 : len(kinds) + 1]
        np.cumsum(counts[kinds].T, axis=1, out=ends)
        starts[:, len(kinds) + 1 :] = ends[:, -1:]
        return starts

    def holds(self, level: Schedule, bucket: int, starts: Starts) -> bool:
        """Whether a batch lies within the bounds of ``level`` in ``bucket``."""
        return bool((starts[:, -1] <= bucket * np.array(self._counts(level))).all())

    def strongest(self, levels: Iterable[Schedule], bucket: int, starts: Starts) -> Schedule | None:
        """Of ``levels`` whose bounds hold, the one with the fewest tokens; None where there is none."""
        for level in sorted(levels, key=lambda level: sum(self._counts(level))):
            if self.holds(level, bucket, starts):
                return level
        return None

    def plan(self, level: Schedule, bucket: int) -> BoundedPlan:
        """What a graph is recorded with: it reads what `write` has written."""
        return BoundedPlan.of(self._counts(level), self._starts[:, : bucket + 1])

    def write(self, starts: Starts) -> None:
        """What runs next, on the stream that is current, is a batch with these ``starts``."""
        if self._staging is None:
            self._starts.copy_(torch.from_numpy(starts))
        else:
            self._staging.copy(starts.view(np.uint8), self._starts.view(torch.uint8))
