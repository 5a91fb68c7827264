"""The shapes of one forward pass, which follow from the schedules and are known before it runs.

The images of a batch are sorted into groups that have equal token counts in every block. One packed
buffer ``(T, D)`` holds the tokens of all images, group after group. Layers that work token by token
therefore run once over the whole batch, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor

from tome_core.matching import Matcher
from tome_core.schedule import Schedule

T = TypeVar("T")
# Tokens of one image, at the input and after each block.
TokenCounts = tuple[int, ...]

# Clients choose schedules, so the number of different plans has no limit; what one plan caches on a
# device may take megabytes.
_CACHED_PLANS = 64
_CACHED_COUNTS = 1024
_CACHED_INDEX_TENSORS = 256


@dataclass(frozen=True)
class Group:
    """The images of a batch that have the same number of tokens in every block.

    Attributes:
        images: number of images.
        wanted: ``r`` of each block as the schedule gives it, before it is clamped to what the block
            can merge. A matcher receives this number; ``tokens`` say how many tokens it leaves.
        tokens: token counts of one image, at the input and after each block.
    """

    images: int
    wanted: tuple[int, ...]
    tokens: TokenCounts


@dataclass(frozen=True)
class Plan:
    """The groups of one batch, and the order of its images in the packed buffer.

    Attributes:
        groups: in descending order of their token counts, whatever the order of the batch. All
            batches with equal groups share what is cached for these groups.
        order: for each image of the buffer, its index in the batch.
    """

    groups: tuple[Group, ...]
    order: tuple[int, ...]
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def inverse_order(self) -> tuple[int, ...]:
        """For each image of the batch, its index in the buffer."""
        indices = range(len(self.order))
        return tuple(sorted(indices, key=self.order.__getitem__))

    @property
    def counts(self) -> list[tuple[int, ...]]:
        """Tokens of each image of the buffer: a row for the input, then one for each block."""
        counts_of_images: list[TokenCounts] = []
        for group in self.groups:
            counts_of_images += [group.tokens] * group.images
        return list(zip(*counts_of_images, strict=True))

    def offsets(self, like: Tensor) -> Tensor:
        """Return where the tokens of each image begin in the buffer, then the total.

        Returns:
            int64 ``(depth + 1, images + 1)`` on the device of ``like``: a row for the input, then
            one for each block.
        """

        def make() -> Tensor:
            rows = []
            for counts in self.counts:
                starts = accumulate(counts, initial=0)
                rows.append(list(starts))
            return to_device(rows, like.device)

        return self.cached("offsets", like, make)

    def cached(
        self,
        name: str,
        like: Tensor,
        make: Callable[[], T],
    ) -> T:
        """Return the result of ``make`` for the device of ``like``, cached for these groups."""
        # Fake tensors and those of a compiler are of no use in a later call.
        if type(like) is not Tensor:
            return make()
        key = (name, like.device)
        if key not in self._cache:
            # A tensor made in inference mode is of no use in training.
            with torch.inference_mode(False):
                self._cache[key] = make()
        return cast(T, self._cache[key])

    def leading(
        self,
        rows: Tensor,
        block: int,
        count: int,
    ) -> Tensor:
        """Select the first ``count`` tokens of each image.

        Args:
            rows: ``(T, ...)``, a buffer before ``block`` merges.
            block: index of the block.
            count: number of tokens to select.

        Returns:
            ``(B * count, ...)``.
        """
        if len(self.groups) == 1:
            # A slice needs no index tensor. A CUDA graph would still read that tensor after the
            # plan, whose cache holds it, is gone.
            ((_, view),) = self.views(rows, block)  # (B, N, ...)
            return view[:, :count].flatten(0, 1)

        def make() -> Tensor:
            indices: list[int] = []
            counts = self.counts[block]
            for start in accumulate(counts[:-1], initial=0):
                indices += range(start, start + count)
            return to_device(indices, rows.device)

        return rows[self.cached(f"leading {count} of {block}", rows, make)]

    def length(self, blocks_run: int) -> int:
        """Return the tokens of the whole buffer after so many blocks; 0 for the input."""
        return sum(group.images * group.tokens[blocks_run] for group in self.groups)

    def merges(self, block: int) -> bool:
        """Return whether any image loses tokens in ``block``."""
        return any(group.tokens[block] > group.tokens[block + 1] for group in self.groups)

    @property
    def merges_anywhere(self) -> bool:
        """Whether any image loses tokens in any block."""
        depth = len(self.groups[0].wanted)
        return any(self.merges(block) for block in range(depth))

    def views(self, buffer: Tensor, blocks_run: int) -> Iterator[tuple[Group, Tensor]]:
        """Yield each group with its part of ``buffer (T, ...)`` after so many blocks.

        The part is a view ``(images, tokens, ...)``. With ``blocks_run`` the index of a block these
        are the tokens before it merges; with the index + 1, those after it.
        """
        start = 0
        for group in self.groups:
            shape = (group.images, group.tokens[blocks_run])
            end = start + group.images * group.tokens[blocks_run]
            yield group, buffer[start:end].unflatten(0, shape)
            start = end

    def arrange(self, rows: Tensor) -> Tensor:
        """Reorder ``rows (B, ...)`` from the order of the batch to that of the buffer."""
        if len(self.groups) == 1:
            return rows
        return rows[index_tensor(self.order, rows)]

    def restore(self, rows: Tensor) -> Tensor:
        """Reorder ``rows (B, ...)`` from the order of the buffer to that of the batch."""
        if len(self.groups) == 1:
            return rows
        return rows[index_tensor(self.inverse_order, rows)]

    def by_image(self, groups: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Return tensors of groups, ``(images, tokens, ...)`` each, in the order of the batch.

        The result is one tensor if there is one group, else a list with a tensor per image.
        """
        if len(groups) == 1:
            return groups[0]
        images: list[Tensor] = []
        for group in groups:
            images += group
        return [images[index] for index in self.inverse_order]


@dataclass(frozen=True)
class BoundedPlan(Plan):
    """A plan for every batch that stays within bounds; the device holds the lengths of the images.

    One CUDA graph with such a plan serves any mix of schedules. The images are in the order of the
    batch. Only an encoder that reads `starts` can run this plan; other code cannot find the images
    in the buffer. Rows after the last token have undefined values.

    Attributes:
        groups: one group. Its images times its tokens are the most rows that the buffer may need
            before each block.
        starts: int32 ``(depth + 1, images + 1)`` on the device: where each image begins at the
            input and after each block, then the number of tokens. Images that the batch does not
            have get no tokens.
    """

    starts: Tensor = field(kw_only=True, compare=False)

    @classmethod
    def of(cls, counts: Sequence[int], starts: Tensor) -> BoundedPlan:
        """Return the plan of batches whose images have on average at most ``counts`` tokens.

        Args:
            counts: token counts at the input and after each block.
            starts: see `BoundedPlan`.
        """
        images = starts.shape[1] - 1
        r_of_blocks = tuple(before - after for before, after in pairwise(counts))
        group = Group(images, r_of_blocks, tuple(counts))
        order = tuple(range(images))
        return cls((group,), order, starts=starts)

    @property
    def counts(self) -> list[tuple[int, ...]]:
        """Raises TypeError: only the device has them."""
        _refuse_on_host()

    def views(self, buffer: Tensor, blocks_run: int) -> Iterator[tuple[Group, Tensor]]:
        """Raises TypeError: only the device has the lengths of the images."""
        _refuse_on_host()

    def merges(self, block: int) -> bool:
        """Return True: any image may lose tokens in any block."""
        return True

    def leading(
        self,
        rows: Tensor,
        block: int,
        count: int,
    ) -> Tensor:
        """Select tokens as `Plan.leading`; undefined for images that the batch does not have."""
        indices = self.starts[block, :-1]  # (B,)
        if count > 1:
            steps = torch.arange(count, dtype=indices.dtype, device=indices.device)
            indices = (indices[:, None] + steps).flatten()  # (B * count,)
        last_row = len(rows) - 1
        return rows.index_select(0, indices.clamp(max=last_row))


def _refuse_on_host() -> NoReturn:
    raise TypeError("the images of a bounded plan can be told apart on the device alone")


def make_plan(
    schedules: Sequence[Schedule],
    depth: int,
    tokens: int,
    prefix: int,
    matcher: Matcher,
) -> Plan:
    """Return the plan of a batch.

    Args:
        schedules: one per image.
        depth: number of blocks.
        tokens: tokens of one image at the input (N0).
        prefix: how many of them are prefix tokens.
        matcher: determines how many tokens a block leaves.

    Raises:
        ValueError: a schedule is longer than ``depth``.
    """
    images_by_counts: dict[TokenCounts, list[int]] = {}
    r_by_counts: dict[TokenCounts, tuple[int, ...]] = {}
    for image, schedule in enumerate(schedules):
        counts = token_counts(schedule, depth, tokens, prefix, matcher)
        images_by_counts.setdefault(counts, []).append(image)
        # Different schedules may lead to equal counts. The least of them is chosen, so that the
        # group does not depend on the order of the batch.
        r_of_blocks = schedule.wanted(depth)
        least = r_by_counts.get(counts, r_of_blocks)
        r_by_counts[counts] = min(least, r_of_blocks)
    sorted_groups = []
    order: list[int] = []
    for counts in sorted(images_by_counts, reverse=True):
        images = images_by_counts[counts]
        group = Group(len(images), r_by_counts[counts], counts)
        sorted_groups.append(group)
        order += images
    groups = tuple(sorted_groups)
    return Plan(groups, tuple(order), shared_cache(groups))


@lru_cache(maxsize=_CACHED_PLANS)
def shared_cache(groups: tuple[Group, ...]) -> dict[Any, Any]:
    """Return the cache that all plans of these groups share; see `Plan.cached`."""
    return {}


@lru_cache(maxsize=_CACHED_COUNTS)
def token_counts(
    schedule: Schedule,
    depth: int,
    tokens: int,
    prefix: int,
    matcher: Matcher,
) -> TokenCounts:
    """Return the tokens of one image under ``schedule``: at the input and after each block."""
    counts = [tokens]
    for r in schedule.wanted(depth):
        remaining = counts[-1]
        if r > 0:
            remaining = matcher.remaining(remaining, r, prefix)
        counts.append(remaining)
    return tuple(counts)


def index_tensor(
    indices: tuple[int, ...],
    like: Tensor,
) -> Tensor:
    """Return ``indices`` as an int64 tensor on the device of ``like``, cached."""
    if type(like) is not Tensor:  # see `Plan.cached`
        return to_device(indices, like.device)
    return _cached_index_tensor(indices, like.device)


@lru_cache(maxsize=_CACHED_INDEX_TENSORS)
def _cached_index_tensor(
    indices: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    with torch.inference_mode(False):
        return to_device(indices, device)


def to_device(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """Copy ``numbers`` to ``device`` as an int64 tensor; the host does not wait for the copy."""
    tensor = torch.tensor(numbers)
    is_real = type(tensor) is Tensor
    if device.type == "cuda" and is_real and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def join(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate ``tensors``; a single one is returned as it is, without a copy."""
    if len(tensors) == 1:
        return tensors[0]
    return torch.cat(list(tensors))
