"""Where the images of a batch lie in the packed buffer, in the form that kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from tome_core.ragged.plan import BoundedPlan, Plan

_ALIGNMENT = 4  # int32 numbers: rows that begin at multiples of 16 bytes are read fastest


@dataclass(frozen=True)
class Extents:
    """Where the images of a batch lie, at the input and after each block.

    Attributes:
        starts: where each image begins, then the number of tokens, int32 ``(images + 1,)``.
        longest: the tokens of the longest image, or an upper bound.
        lengths: the tokens of all images, or an upper bound.
        merges: for each block, whether any image may lose tokens in it.
    """

    starts: tuple[Tensor, ...]
    longest: tuple[int, ...]
    lengths: tuple[int, ...]
    merges: tuple[bool, ...]

    @classmethod
    def of(cls, plan: Plan, like: Tensor) -> Extents:
        """Return the extents of ``plan`` on the device of ``like``; they are kept with the plan."""
        if isinstance(plan, BoundedPlan):
            return cls._within_bounds(plan)
        return plan.cached("extents", like, partial(cls._exact, plan, like))

    @classmethod
    def _exact(cls, plan: Plan, like: Tensor) -> Extents:
        counts = plan.counts
        offsets = plan.offsets(like)
        row_length = offsets.shape[1]
        aligned = F.pad(offsets, (0, -row_length % _ALIGNMENT)).int()
        depth = len(counts) - 1
        return cls(
            starts=tuple(row[:row_length] for row in aligned.unbind()),
            longest=tuple(max(row) for row in counts),
            lengths=tuple(sum(row) for row in counts),
            merges=tuple(plan.merges(index) for index in range(depth)),
        )

    @classmethod
    def _within_bounds(cls, plan: BoundedPlan) -> Extents:
        """The bounds of ``plan``: any image may keep all of its tokens, whatever the others do."""
        rows = len(plan.starts)
        input_tokens = plan.groups[0].tokens[0]
        return cls(
            starts=plan.starts.unbind(),
            longest=(input_tokens,) * rows,
            lengths=tuple(plan.length(index) for index in range(rows)),
            merges=tuple(plan.merges(index) for index in range(rows - 1)),
        )
