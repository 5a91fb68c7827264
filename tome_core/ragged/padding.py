"""Where the tokens of images of several lengths lie in one buffer, and how they become a padded batch and back.

Everything is made on the device from where images begin. The host knows every length, so nothing
has to be read back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tome_core.ragged.plan import Plan


@dataclass(frozen=True)
class Places:
    """The images of a buffer before one block: index tensors on one device.

    Attributes:
        longest: tokens of the longest image.
        starts: where each image begins, then how many tokens there are, int32 ``(images + 1,)``.
        counts: tokens of each image, int64 ``(images, 1)``.
        padded: the token of the buffer at each place of the padded batch, int64 ``(images,
            longest)``. Past its end an image repeats its own last token, so that nothing of one
            image ever reaches another, not even NaN.
        inside: which of these places are not past the end, bool ``(images, longest)``.
        flat: the place of each token of the buffer in the flattened padded batch, int64 ``(T,)``.
    """

    longest: int
    starts: Tensor
    counts: Tensor
    padded: Tensor
    inside: Tensor
    flat: Tensor

    def pad(self, buffer: Tensor) -> Tensor:
        """``(T, ...)`` -> ``(images, longest, ...)``."""
        return buffer[self.padded]

    def unpad(self, batch: Tensor) -> Tensor:
        """``(images, longest, ...)`` -> ``(T, ...)``."""
        return batch.flatten(0, 1)[self.flat]


def places_of(plan: Plan, like: Tensor) -> tuple[Places, ...]:
    """The places of ``plan`` on the device of ``like``, at the input and after each block; kept with the plan."""
    return plan.keep("places", like, lambda: make_places(plan.offsets(like), plan.counts))


def make_places(offsets: Tensor, lengths: Sequence[Sequence[int]]) -> tuple[Places, ...]:
    """All at once, since each operator costs a launch.

    Args:
        offsets: ``(depth + 1, images + 1)``, as `Plan.offsets`.
        lengths: the same on the host, tokens of each image.
    """
    images = len(lengths[0])
    total = sum(map(sum, lengths))
    longest = [max(row) for row in lengths]
    begins = offsets[:, :-1, None]
    ends = offsets[:, 1:, None]
    steps = torch.arange(max(longest), device=offsets.device)
    padded = torch.minimum(begins + steps, ends - 1)
    inside = steps < ends - begins
    counts = (ends - begins).flatten()
    # For every token of every block: which row of (depth + 1) * images it is in, and where there.
    rows = torch.repeat_interleave(
        torch.arange(len(counts), device=offsets.device), counts, output_size=total
    )
    firsts = counts.cumsum(0) - counts
    within = torch.arange(total, device=offsets.device) - firsts[rows]
    flat = (rows % images, within)
    starts = offsets.int()
    places = []
    done = 0
    for index, (row, width) in enumerate(zip(lengths, longest, strict=True)):
        part = slice(done, done := done + sum(row))
        places.append(
            Places(
                longest=width,
                starts=starts[index],
                counts=counts.view(-1, images, 1)[index],
                padded=padded[index, :, :width],
                inside=inside[index, :, :width],
                flat=flat[0][part] * width + flat[1][part],
            )
        )
    return tuple(places)
