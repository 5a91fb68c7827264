"""How a packed buffer of images of several lengths becomes a padded batch, and the way back.

The device computes all index tensors from where images begin. The host knows every length, so it
never waits to read one back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tome_core.ragged.plan import Plan


@dataclass(frozen=True)
class PaddedLayout:
    """Index tensors between a packed buffer and a padded batch, before one block, on one device.

    Attributes:
        longest: tokens of the longest image.
        starts: where each image begins in the buffer, then the number of tokens, int32
            ``(images + 1,)``.
        counts: tokens of each image, int64 ``(images, 1)``.
        padded: for each position of the padded batch, the index of its token in the buffer, int64
            ``(images, longest)``. The padding of an image repeats its own last token, so that no
            value of one image reaches another, not even NaN.
        inside: which positions are not padding, bool ``(images, longest)``.
        flat: for each token of the buffer, its position in the flattened padded batch, int64
            ``(T,)``.
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


def padded_layouts(plan: Plan, like: Tensor) -> tuple[PaddedLayout, ...]:
    """Return the index tensors of ``plan`` on the device of ``like``, cached with the plan.

    There is one entry for the input, then one for each block.
    """

    def make() -> tuple[PaddedLayout, ...]:
        return make_padded_layouts(plan.offsets(like), plan.counts)

    return plan.cached("places", like, make)


def make_padded_layouts(
    offsets: Tensor,
    lengths: Sequence[Sequence[int]],
) -> tuple[PaddedLayout, ...]:
    """Compute the index tensors of all blocks together, since each operator costs a kernel launch.

    Args:
        offsets: ``(depth + 1, images + 1)``, as `Plan.offsets`.
        lengths: the tokens of each image, ``depth + 1`` rows, on the host.
    """
    device = offsets.device
    images = len(lengths[0])
    longest = [max(row) for row in lengths]

    # Of every position of the padded batches, all as wide as the longest: (depth + 1, images, N).
    starts = offsets[:, :-1, None]  # (depth + 1, images, 1)
    ends = offsets[:, 1:, None]  # (depth + 1, images, 1)
    steps = torch.arange(max(longest), device=device)  # (N,)
    padded = torch.minimum(starts + steps, ends - 1)
    inside = steps < ends - starts

    # Of every token of every buffer, one buffer after the other: (sum of all lengths,).
    counts = (ends - starts).flatten()  # ((depth + 1) * images,)
    image, position = _images_and_positions(counts, images, sum(map(sum, lengths)))

    starts_and_totals = offsets.int()
    counts = counts.view(-1, images, 1)
    places = []
    begin = 0
    for index, width in enumerate(longest):
        end = begin + sum(lengths[index])
        flat = image[begin:end] * width + position[begin:end]  # (T,)
        begin = end
        places.append(
            PaddedLayout(
                longest=width,
                starts=starts_and_totals[index],
                counts=counts[index],
                padded=padded[index, :, :width],
                inside=inside[index, :, :width],
                flat=flat,
            )
        )
    return tuple(places)


def _images_and_positions(
    counts: Tensor,
    images: int,
    total: int,
) -> tuple[Tensor, Tensor]:
    """Return the image of each token and its position there, for all buffers one after the other.

    Args:
        counts: tokens of each image, ``((depth + 1) * images,)``.
        images: number of images in one buffer.
        total: the sum of ``counts``, which the host knows.
    """
    device = counts.device
    numbers = torch.arange(len(counts), device=device)
    # The entry of counts that each token belongs to.
    entry = torch.repeat_interleave(numbers, counts, output_size=total)  # (total,)
    first_tokens = counts.cumsum(0) - counts
    position = torch.arange(total, device=device) - first_tokens[entry]
    return entry % images, position
