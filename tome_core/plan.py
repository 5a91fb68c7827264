"""The shapes of one forward pass, known before it runs: they follow from the schedules alone.

The images of a batch are sorted into groups that merge alike. All tokens of all groups lie one after the other in one
buffer ``(sum of tokens, D)``, so layers that work token by token run once over everything, without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from tome_core.matching import Matcher
from tome_core.schedule import Schedule


@dataclass(frozen=True)
class Group:
    """The images of a batch that have the same number of tokens in every block.

    Attributes:
        images: their positions in the batch.
        wanted: ``r`` of each block, as the schedule says it.
        tokens: token counts of one image, at the input and after each block.
    """

    images: tuple[int, ...]
    wanted: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """How one batch runs: its groups, and the order in which their images lie in the buffer."""

    groups: tuple[Group, ...]

    @property
    def order(self) -> list[int]:
        """Position in the batch of each image of the buffer."""
        return [image for group in self.groups for image in group.images]

    @property
    def back(self) -> list[int]:
        """Position in the buffer of each image of the batch."""
        order = self.order
        return sorted(range(len(order)), key=order.__getitem__)

    @cached_property
    def offsets(self) -> Tensor:
        """Where the tokens of each image of the buffer begin, then how many there are: int64, on the CPU.

        ``(depth + 1, images + 1)``, at the input and after each block.
        """
        counts = torch.tensor([group.tokens for group in self.groups for _ in group.images]).T
        ends = counts.cumsum(dim=1)
        return torch.cat([ends.new_zeros(len(ends), 1), ends], dim=1)

    def merges(self, block: int) -> bool:
        """Whether any image loses tokens in ``block``."""
        return any(group.tokens[block] > group.tokens[block + 1] for group in self.groups)

    def views(self, buffer: Tensor, block: int) -> Iterator[tuple[Group, Tensor]]:
        """Each group with its part of ``buffer (T, ...)`` as ``(images, tokens, ...)``, before ``block`` merges."""
        start = 0
        for group in self.groups:
            images, tokens = len(group.images), group.tokens[block]
            end = start + images * tokens
            yield group, buffer[start:end].unflatten(0, (images, tokens))
            start = end

    def restore(self, rows: Tensor) -> Tensor:
        """``rows``, one an image, from the order of the buffer back to that of the batch."""
        return rows if len(self.groups) == 1 else rows[torch.tensor(self.back, device=rows.device)]

    def by_image(self, groups: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """What each group has, ``(images, tokens, ...)``, in the batch's order: one tensor, or a list of images."""
        if len(groups) == 1:
            return groups[0]
        images = [image for group in groups for image in group]
        return [images[index] for index in self.back]


def make_plan(schedules: Sequence[Schedule], depth: int, tokens: int, prefix: int, matcher: Matcher) -> Plan:
    """The plan of a batch, one schedule an image.

    Raises:
        ValueError: a schedule is longer than ``depth``.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    wanted: dict[tuple[int, ...], tuple[int, ...]] = {}
    for image, schedule in enumerate(schedules):
        counts = token_counts(schedule, depth, tokens, prefix, matcher)
        members.setdefault(counts, []).append(image)
        wanted[counts] = schedule.wanted(depth)
    return Plan(tuple(Group(tuple(images), wanted[counts], counts) for counts, images in members.items()))


@lru_cache(maxsize=1024)
def token_counts(schedule: Schedule, depth: int, tokens: int, prefix: int, matcher: Matcher) -> tuple[int, ...]:
    """Token counts of one image under ``schedule``: at the input, and after each block."""
    counts = [tokens]
    for r in schedule.wanted(depth):
        counts.append(matcher.remaining(counts[-1], r, prefix) if r else counts[-1])
    return tuple(counts)


def join(parts: Sequence[Tensor]) -> Tensor:
    """The buffer that consists of ``parts``, which is the part itself where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
