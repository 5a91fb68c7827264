"""The shapes of one forward pass, known before it runs: they follow from the schedules alone.

The images of a batch are sorted into groups that merge alike. All tokens of all groups lie one after the other in one
buffer ``(sum of tokens, D)``, so layers that work token by token run once over everything, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from tome_core.matching import Matcher
from tome_core.schedule import Schedule

T = TypeVar("T")


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
    _kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def order(self) -> list[int]:
        """Position in the batch of each image of the buffer."""
        return [image for group in self.groups for image in group.images]

    @property
    def back(self) -> list[int]:
        """Position in the buffer of each image of the batch."""
        order = self.order
        return sorted(range(len(order)), key=order.__getitem__)

    @property
    def counts(self) -> list[tuple[int, ...]]:
        """Tokens of each image of the buffer: a row for the input, then one for what each block leaves."""
        return list(zip(*(group.tokens for group in self.groups for _ in group.images), strict=True))

    def offsets(self, like: Tensor) -> Tensor:
        """Where the tokens of each image of the buffer begin, then how many there are: int64, beside ``like``.

        ``(depth + 1, images + 1)``, at the input and after each block.
        """

        def make() -> Tensor:
            return to_device([[*accumulate(row, initial=0)] for row in self.counts], like.device)

        return self.keep("offsets", like, make)

    def keep(self, name: str, like: Tensor, make: Callable[[], T]) -> T:
        """What ``make`` gives for the device of ``like``: made once, and kept as long as the plan is."""
        if type(like) is not Tensor:  # what is made of fake tensors, or for a compiler, is of no use later
            return make()
        key = name, like.device
        if key not in self._kept:
            with torch.inference_mode(False):  # what is made in inference mode is of no use in training
                self._kept[key] = make()
        return cast(T, self._kept[key])

    def leading(self, rows: Tensor, block: int, count: int) -> Tensor:
        """The first ``count`` of each image's ``rows (T, ...)``, before ``block`` merges: ``(B * count, ...)``."""
        if len(self.groups) == 1:
            # No index, which is kept with the plan: a CUDA graph would read it when both are gone.
            ((_, view),) = self.views(rows, block)
            return view[:, :count].flatten(0, 1)

        def make() -> Tensor:
            starts = accumulate(self.counts[block][:-1], initial=0)
            return to_device([start + i for start in starts for i in range(count)], rows.device)

        return rows[self.keep(f"leading {count} of {block}", rows, make)]

    def length(self, block: int) -> int:
        """Tokens of the whole buffer before ``block`` merges."""
        return sum(len(group.images) * group.tokens[block] for group in self.groups)

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

    def arrange(self, rows: Tensor) -> Tensor:
        """``rows``, one an image, from the order of the batch to that of the buffer."""
        if len(self.groups) == 1:
            return rows
        return rows[self.keep("order", rows, lambda: to_device(self.order, rows.device))]

    def restore(self, rows: Tensor) -> Tensor:
        """``rows``, one an image, from the order of the buffer back to that of the batch."""
        if len(self.groups) == 1:
            return rows
        return rows[self.keep("back", rows, lambda: to_device(self.back, rows.device))]

    def by_image(self, groups: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """What each group has, ``(images, tokens, ...)``, in the batch's order: one tensor, or a list of images."""
        if len(groups) == 1:
            return groups[0]
        images = [image for group in groups for image in group]
        return [images[index] for index in self.back]


# Clients choose schedules, so there is no end of plans; and what a plan keeps on a device may be megabytes.
@lru_cache(maxsize=64)
def make_plan(schedules: tuple[Schedule, ...], depth: int, tokens: int, prefix: int, matcher: Matcher) -> Plan:
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


def to_device(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """``numbers`` as an int64 tensor on ``device``, which the host does not wait for."""
    tensor = torch.tensor(numbers)
    if device.type == "cuda" and type(tensor) is Tensor and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def join(parts: Sequence[Tensor]) -> Tensor:
    """The buffer that consists of ``parts``, which is the part itself where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
