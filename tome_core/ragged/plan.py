"""The shapes of one forward pass, known before it runs: they follow from the schedules alone.

The images of a batch are sorted into groups that merge alike. All tokens of all groups lie one
after the other in one buffer ``(sum of tokens, D)``, so layers that work token by token run once
over everything, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise
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
        images: how many there are.
        wanted: ``r`` of each block, as the schedule says it.
        tokens: token counts of one image, at the input and after each block.
    """

    images: int
    wanted: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """How one batch runs: its groups, and the order in which their images lie in the buffer.

    Attributes:
        groups: those with the most tokens first, whatever the order of the batch: what is kept for
            these groups serves every batch that has them.
        order: position in the batch of each image of the buffer.
    """

    groups: tuple[Group, ...]
    order: tuple[int, ...]
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def back(self) -> tuple[int, ...]:
        """Position in the buffer of each image of the batch."""
        return tuple(sorted(range(len(self.order)), key=self.order.__getitem__))

    @property
    def counts(self) -> list[tuple[int, ...]]:
        """Tokens of each image of the buffer: a row for the input, then one for what each block leaves."""
        return list(
            zip(*(group.tokens for group in self.groups for _ in range(group.images)), strict=True)
        )

    def offsets(self, like: Tensor) -> Tensor:
        """Where the tokens of each image of the buffer begin, then how many there are: int64, beside ``like``.

        ``(depth + 1, images + 1)``, at the input and after each block.
        """

        def make() -> Tensor:
            return to_device([[*accumulate(row, initial=0)] for row in self.counts], like.device)

        return self.keep("offsets", like, make)

    def keep(self, name: str, like: Tensor, make: Callable[[], T]) -> T:
        """What ``make`` gives for the device of ``like``: made once, and kept as long as these groups are."""
        if (
            type(like) is not Tensor
        ):  # what is made of fake tensors, or for a compiler, is of no use later
            return make()
        key = name, like.device
        if key not in self._kept:
            with torch.inference_mode(
                False
            ):  # what is made in inference mode is of no use in training
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
        return sum(group.images * group.tokens[block] for group in self.groups)

    def merges(self, block: int) -> bool:
        """Whether any image loses tokens in ``block``."""
        return any(group.tokens[block] > group.tokens[block + 1] for group in self.groups)

    def views(self, buffer: Tensor, block: int) -> Iterator[tuple[Group, Tensor]]:
        """Each group with its part of ``buffer (T, ...)`` as ``(images, tokens, ...)``, before ``block`` merges."""
        start = 0
        for group in self.groups:
            images = group.images
            tokens = group.tokens[block]
            end = start + images * tokens
            yield group, buffer[start:end].unflatten(0, (images, tokens))
            start = end

    def arrange(self, rows: Tensor) -> Tensor:
        """``rows``, one an image, from the order of the batch to that of the buffer."""
        if len(self.groups) == 1:
            return rows
        return rows[index_tensor(self.order, rows)]

    def restore(self, rows: Tensor) -> Tensor:
        """``rows``, one an image, from the order of the buffer back to that of the batch."""
        if len(self.groups) == 1:
            return rows
        return rows[index_tensor(self.back, rows)]

    def by_image(self, groups: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """What each group has, ``(images, tokens, ...)``, in the batch's order: one tensor, or a list of images."""
        if len(groups) == 1:
            return groups[0]
        images = [image for group in groups for image in group]
        return [images[index] for index in self.back]


@dataclass(frozen=True)
class BoundedPlan(Plan):
    """A plan for every batch that stays within bounds: what is where is read from the device as it runs.

    So one CUDA graph serves any mix of schedules. The images lie in the order of the batch. An
    encoder that reads `starts` runs it; nothing else can tell its images apart. Rows past the last
    token hold anything.

    Attributes:
        groups: one, whose images times tokens are the most rows that all images together may have
            before each block.
        starts: int32 ``(depth + 1, images + 1)`` on the device: where each image begins at the
            input and after each block, then how many tokens there are. Images that a batch has not
            have no tokens.
    """

    starts: Tensor = field(kw_only=True, compare=False)

    @classmethod
    def of(cls, counts: Sequence[int], starts: Tensor) -> BoundedPlan:
        """For batches in which an image has at most ``counts`` tokens at the input and after each block, on average."""
        images = starts.shape[1] - 1
        group = Group(
            images, tuple(before - after for before, after in pairwise(counts)), tuple(counts)
        )
        return cls((group,), tuple(range(images)), starts=starts)

    @property
    def counts(self) -> list[tuple[int, ...]]:
        """Raises TypeError: they are on the device."""
        raise TypeError("the images of a bounded plan can be told apart on the device alone")

    def views(self, buffer: Tensor, block: int) -> Iterator[tuple[Group, Tensor]]:
        """Raises TypeError, as `counts` does."""
        raise TypeError("the images of a bounded plan can be told apart on the device alone")

    def merges(self, block: int) -> bool:
        """Any image may lose tokens in any block."""
        return True

    def leading(self, rows: Tensor, block: int, count: int) -> Tensor:
        """As of any plan; of images that the batch has not, anything."""
        starts = self.starts[block, :-1]
        if count > 1:
            starts = (
                starts[:, None] + torch.arange(count, dtype=starts.dtype, device=starts.device)
            ).flatten()
        return rows.index_select(0, starts.clamp(max=len(rows) - 1))


def make_plan(
    schedules: Sequence[Schedule], depth: int, tokens: int, prefix: int, matcher: Matcher
) -> Plan:
    """The plan of a batch, one schedule an image.

    Raises:
        ValueError: a schedule is longer than ``depth``.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    wanted: dict[tuple[int, ...], tuple[int, ...]] = {}
    for image, schedule in enumerate(schedules):
        counts = token_counts(schedule, depth, tokens, prefix, matcher)
        members.setdefault(counts, []).append(image)
        asked = schedule.wanted(depth)
        wanted[counts] = min(
            wanted.get(counts, asked), asked
        )  # of those that merge alike, whatever their order
    in_order = sorted(members, reverse=True)
    groups = tuple(Group(len(members[counts]), wanted[counts], counts) for counts in in_order)
    order = tuple(image for counts in in_order for image in members[counts])
    return Plan(groups, order, kept_for(groups))


# Clients choose schedules, so there is no end of plans; and what is kept for one on a device may be
# megabytes.
@lru_cache(maxsize=64)
def kept_for(groups: tuple[Group, ...]) -> dict[Any, Any]:
    """What plans of these groups share; see `Plan.keep`."""
    return {}


@lru_cache(maxsize=1024)
def token_counts(
    schedule: Schedule, depth: int, tokens: int, prefix: int, matcher: Matcher
) -> tuple[int, ...]:
    """Token counts of one image under ``schedule``: at the input, and after each block."""
    counts = [tokens]
    for r in schedule.wanted(depth):
        counts.append(matcher.remaining(counts[-1], r, prefix) if r else counts[-1])
    return tuple(counts)


def index_tensor(numbers: tuple[int, ...], like: Tensor) -> Tensor:
    """``numbers`` as an int64 tensor beside ``like``; those that were used last are kept."""
    if type(like) is not Tensor:  # as in `Plan.keep`
        return to_device(numbers, like.device)
    return _kept_index(numbers, like.device)


@lru_cache(maxsize=256)
def _kept_index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return to_device(numbers, device)


def to_device(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """``numbers`` as an int64 tensor on ``device``, which the host does not wait for."""
    tensor = torch.tensor(numbers)
    if device.type == "cuda" and type(tensor) is Tensor and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def join(parts: Sequence[Tensor]) -> Tensor:
    """The buffer that consists of ``parts``, which is the part itself where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
