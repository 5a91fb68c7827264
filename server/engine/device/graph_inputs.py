"""Inputs of the CUDA graphs that serve mixed batches: where each image begins, and bounds."""

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
    """Describes mixed batches, and holds the device tensor that all graphs read.

    A graph is recorded for a bucket and a level. It serves every batch that never has more tokens,
    at the input and after each block, than a bucket full of images at this level.

    Args:
        token_counts: returns the tokens of one image under a schedule: at the input and after each
            block.
    """

    def __init__(
        self,
        token_counts: Callable[[Schedule], tuple[int, ...]],
        max_batch: int,
        device: torch.device,
    ) -> None:
        self._token_counts = token_counts
        rows = len(token_counts(Schedule.constant(0)))
        shape = (rows, max_batch + 1)
        self._starts = torch.zeros(shape, dtype=torch.int32, device=device)
        self._pinned_memory: PinnedMemory | None = None
        if device.type == "cuda":
            self._pinned_memory = PinnedMemory(device)

    def merges(self, schedule: Schedule) -> bool:
        """Return whether an image loses any tokens under ``schedule``."""
        counts = self._token_counts(schedule)
        return counts[-1] < counts[0]

    def starts(self, schedules: Sequence[Schedule]) -> Starts:
        """Return where the tokens of each image begin, then the number of all tokens.

        The shape is ``(depth + 1, max_batch + 1)``: one row for the input, and one for each block's
        output. The images that the batch lacks are empty: they begin and end where the last image
        ends.
        """
        images = len(schedules)
        # Look up each distinct schedule once, then expand to one column for each image.
        indices: dict[Schedule, int] = {}
        image_indices = [indices.setdefault(schedule, len(indices)) for schedule in schedules]
        counts = np.array([self._token_counts(schedule) for schedule in indices], np.int32)
        image_counts = counts[image_indices].T
        starts = np.zeros(self._starts.shape, np.int32)
        ends = starts[:, 1 : images + 1]
        np.cumsum(image_counts, axis=1, out=ends)
        starts[:, images + 1 :] = ends[:, -1:]
        return starts

    def fits(
        self,
        level: Schedule,
        bucket: int,
        starts: Starts,
    ) -> bool:
        """Return whether a batch lies within the bounds of ``level`` in ``bucket``."""
        totals = starts[:, -1]
        bounds = bucket * np.array(self._token_counts(level))
        return bool((totals <= bounds).all())

    def tightest(
        self,
        levels: Iterable[Schedule],
        bucket: int,
        starts: Starts,
    ) -> Schedule | None:
        """Return the level with the fewest tokens whose bounds hold; None if none do."""

        def total_tokens(level: Schedule) -> int:
            return sum(self._token_counts(level))

        for level in sorted(levels, key=total_tokens):
            if self.fits(level, bucket, starts):
                return level
        return None

    def plan(self, level: Schedule, bucket: int) -> BoundedPlan:
        """Return the plan to record a graph with; the graph reads what `write` writes."""
        starts = self._starts[:, : bucket + 1]
        return BoundedPlan.of(self._token_counts(level), starts)

    def write(self, starts: Starts) -> None:
        """Make ``starts`` the input of the graph that runs next on the current stream."""
        if self._pinned_memory is None:
            self._starts.copy_(torch.from_numpy(starts))
        else:
            into = self._starts.view(torch.uint8)
            self._pinned_memory.copy(starts.view(np.uint8), into)
