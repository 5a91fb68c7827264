"""Where the images of a batch lie, in the form in which kernels are told."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tome_core.ragged.plan import BoundedPlan, Plan

_ALIGNED = 4  # numbers of int32: rows that begin so have the alignment that kernels like best


@dataclass(frozen=True)
class Extents:
    """Where the images of a batch lie, at the input and after each block.

    Attributes:
        starts: where each image begins, then how many tokens there are, int32 ``(images + 1,)``.
        longest: tokens of the longest image, or more.
        lengths: tokens of all images, or more.
        merges: of each block, whether any image may lose tokens in it.
    """

    starts: tuple[Tensor, ...]
    longest: tuple[int, ...]
    lengths: tuple[int, ...]
    merges: tuple[bool, ...]

    @classmethod
    def of(cls, plan: Plan, like: Tensor) -> Extents:
        """Those of ``plan``, beside ``like``; kept with the plan."""
        if isinstance(plan, BoundedPlan):
            return cls._within(plan)

        def make() -> Extents:
            counts = plan.counts
            offsets = plan.offsets(like)
            images = offsets.shape[1] - 1
            rows = F.pad(offsets, (0, -(images + 1) % _ALIGNED)).int().unbind()
            return cls(
                starts=tuple(row[: images + 1] for row in rows),
                longest=tuple(map(max, counts)),
                lengths=tuple(map(sum, counts)),
                merges=tuple(plan.merges(index) for index in range(len(counts) - 1)),
            )

        return plan.keep("extents", like, make)

    @classmethod
    def _within(cls, plan: BoundedPlan) -> Extents:
        """The bounds of ``plan``: an image may keep all of its tokens, whatever the others do."""
        blocks = range(len(plan.starts))
        return cls(
            starts=plan.starts.unbind(),
            longest=(plan.groups[0].tokens[0],) * len(blocks),
            lengths=tuple(map(plan.length, blocks)),
            merges=tuple(map(plan.merges, blocks[:-1])),
        )
