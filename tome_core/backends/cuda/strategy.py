"""The strategy for NVIDIA GPUs: attention and merging of a packed buffer by Triton kernels.

It serves any block, whatever its layers and its positions. If all blocks of a model are plain,
`tome_core.backends.cuda.encoder` runs them as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tome_core.backends.cuda.attention import (
    DTYPES,
    INTERPRETED,
    attention,
    has_dense_heads,
    launch_attention,
)
from tome_core.backends.cuda.extents import Extents
from tome_core.backends.cuda.matching import PackedMatching, launch_match, match
from tome_core.backends.cuda.merging import launch_merge, merge
from tome_core.backends.padded import PaddedStrategy
from tome_core.metric import BlockTensors
from tome_core.positional import Positional
from tome_core.ragged.packed import Merging, Packed
from tome_core.ragged.plan import Plan

WIDTHS = range(16, 129)  # of heads for which tiles were chosen


class _Kernels(NamedTuple):
    attention: Any
    match: Any
    merge: Any


_LAUNCHERS = _Kernels(launch_attention, launch_match, launch_merge)
_OPERATORS = _Kernels(attention, match, merge)


@dataclass(frozen=True)
class TritonStrategy(PaddedStrategy):
    """Attention and merging by the CUDA kernels.

    Falls back to `PaddedStrategy` where they do not apply: relative bias, dropout, other matchers,
    gradients, unsupported dtypes and head widths.
    """

    # A CUDA graph reads tensors that its plan holds, so these plans live as long as the graphs.
    _recorded: list[Plan] = field(default_factory=list, init=False, repr=False, compare=False)

    def __deepcopy__(self, memo: dict[int, object]) -> TritonStrategy:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return TritonStrategy, ()

    def attend(
        self,
        merging: Merging,
        plan: Plan,
        index: int,
        packed: Packed,
        qkv: tuple[Tensor, Tensor, Tensor],
        positional: Positional | None,
        dropout: float,
    ) -> Tensor:
        """Three of ``(T, H, d)`` -> ``(T, H * d)``."""
        has_bias = positional is not None and positional.has_bias
        if has_bias or dropout or not _can_attend(*qkv):
            return super().attend(merging, plan, index, packed, qkv, positional, dropout)
        q, k, v = (_make_heads_dense(x) for x in qkv)
        extents = self._extents(plan, q)
        sizes = packed.flat_sizes(plan, index) if merging.prop_attn else None
        attended: Tensor = _kernels_for(q).attention(
            q, k, v, sizes, extents.starts[index], extents.longest[index]
        )
        return attended

    def merge(
        self, merging: Merging, plan: Plan, index: int, packed: Packed, features: BlockTensors
    ) -> Packed:
        """Match and merge all images at once, if ``merging`` is the paper's."""
        if not plan.merges(index):
            return packed
        x = packed.tokens
        keys = features.k
        if not merging.follows_paper or not _can_merge(x, keys):
            return super().merge(merging, plan, index, packed, features)
        extents = self._extents(plan, x)
        kernels = _kernels_for(x)
        matched = kernels.match(
            _make_heads_dense(keys),
            extents.starts[index],
            extents.starts[index + 1],
            extents.longest[0],
            extents.lengths[index + 1],
            merging.prefix,
        )
        sizes = packed.flat_sizes(plan, index)
        tokens, new_sizes = kernels.merge(
            x.contiguous(), sizes, matched.order, matched.segment_starts
        )
        return replace(
            packed,
            tokens=tokens,
            sizes=tuple(view for _, view in plan.views(new_sizes, index + 1)),
            sources=_move_sources(packed, plan, index, extents, matched),
            positions=_keep_positions(packed, plan, index, matched),
        )

    def _extents(self, plan: Plan, like: Tensor) -> Extents:
        """Return the extents of ``plan``, and keep it if a CUDA graph is recorded now.

        The plan must have run once before a graph is recorded.
        """
        if like.is_cuda and type(like) is Tensor and torch.cuda.is_current_stream_capturing():
            is_kept = any(plan is recorded for recorded in self._recorded)
            if not is_kept:
                self._recorded.append(plan)
        return Extents.of(plan, like)


def _kernels_for(like: Tensor) -> _Kernels:
    """Launchers for real tensors, because they cost the host less; operators for fake tensors."""
    return _LAUNCHERS if type(like) is Tensor else _OPERATORS


def _move_sources(
    packed: Packed,
    plan: Plan,
    index: int,
    extents: Extents,
    matched: PackedMatching,
) -> tuple[Tensor, ...] | None:
    """The position of each input token of each group after block ``index``, ``(images, N0)``."""
    if not packed.sources:
        return packed.sources
    starts = extents.starts[index][:-1, None]
    new_starts = extents.starts[index + 1][:-1, None]
    in_buffer = torch.cat(packed.sources) + starts
    moved = matched.dest[in_buffer] - new_starts
    images_of_groups = [group.images for group in plan.groups]
    return moved.long().split(images_of_groups)


def _keep_positions(
    packed: Packed,
    plan: Plan,
    index: int,
    matched: PackedMatching,
) -> tuple[Tensor, ...] | None:
    """The input positions of the tokens that stay in block ``index``, for each group."""
    if not packed.positions:
        return packed.positions
    # The first token of each segment stays.
    kept_index = matched.order.index_select(0, matched.segment_starts[:-1])
    flat_positions = torch.cat([part.flatten() for part in packed.positions])
    kept = flat_positions.index_select(0, kept_index)
    return tuple(view for _, view in plan.views(kept, index + 1))


def _can_attend(q: Tensor, k: Tensor, v: Tensor) -> bool:
    if not q.shape == k.shape == v.shape:
        return False
    return _is_supported(q, k, v) and _has_supported_width(q)


def _can_merge(x: Tensor, keys: Tensor) -> bool:
    return _is_supported(x) and _is_supported(keys) and _has_supported_width(keys)


def _is_supported(*tensors: Tensor) -> bool:
    """Whether the kernels can read ``tensors``: of one known dtype, on a GPU, without gradients."""
    device = tensors[0].device.type
    dtype = tensors[0].dtype
    if device != "cuda" and not INTERPRETED:
        return False
    if dtype not in DTYPES or any(tensor.dtype != dtype for tensor in tensors):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return not torch.is_autocast_enabled(device)


def _has_supported_width(heads: Tensor) -> bool:
    """Whether the width of ``heads (T, H, d)`` is one that the kernels know."""
    return heads.shape[2] in WIDTHS


def _make_heads_dense(x: Tensor) -> Tensor:
    """``x (T, H, d)``, copied only unless it `has_dense_heads`."""
    return x if has_dense_heads(x) else x.contiguous()
