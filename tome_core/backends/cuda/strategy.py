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
from tome_core.backends.cuda.pairs import launch_match_pairs, match_pairs
from tome_core.backends.cuda.rules import match_by_rule
from tome_core.backends.padded import PaddedStrategy
from tome_core.metric import BlockTensors
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import Plan

WIDTHS = range(16, 129)  # of heads for which tiles were chosen


class _Kernels(NamedTuple):
    attention: Any
    match: Any
    match_pairs: Any
    merge: Any


_LAUNCHERS = _Kernels(launch_attention, launch_match, launch_match_pairs, launch_merge)
_OPERATORS = _Kernels(attention, match, match_pairs, merge)


@dataclass(frozen=True)
class TritonStrategy(PaddedStrategy):
    """Attention and merging by the CUDA kernels.

    Falls back to `PaddedStrategy` where they do not apply: relative bias, dropout, other rules than
    those of `tome_core.merging.RULES`, gradients, unsupported dtypes and head widths.
    """

    # A CUDA graph reads tensors that its plan holds, so these plans live as long as the graphs.
    _recorded: list[Plan] = field(default_factory=list, init=False, repr=False, compare=False)

    def __deepcopy__(self, memo: dict[int, object]) -> TritonStrategy:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return TritonStrategy, ()

    def attend(
        self,
        context: BlockContext,
        qkv: tuple[Tensor, Tensor, Tensor],
        dropout: float,
    ) -> Tensor:
        """Three of ``(T, H, d)`` -> ``(T, H * d)``."""
        if context.has_bias or dropout or not _can_attend(*qkv):
            return super().attend(context, qkv, dropout)
        q, k, v = (_make_heads_dense(x) for x in qkv)
        extents = self._extents(context.plan, q)
        starts = extents.starts[context.index]
        longest = extents.longest[context.index]
        attended: Tensor = _kernels_for(q).attention(q, k, v, context.key_sizes(), starts, longest)
        return attended

    def merge(self, context: BlockContext, features: BlockTensors) -> Packed:
        """Match and merge all images at once, if kernels know the rule."""
        packed = context.packed
        if not context.merges:
            return packed
        x = packed.tokens
        keys = features.k
        merging = context.merging
        rule = merging.rule
        if rule is None or not _can_merge(x, keys):
            return super().merge(context, features)
        following = context.index + 1
        extents = self._extents(context.plan, x)
        kernels = _kernels_for(x)
        matched = match_by_rule(
            kernels,
            rule,
            _make_heads_dense(keys),
            extents,
            context.index,
            merging.prefix,
        )
        tokens, new_sizes = kernels.merge(
            x.contiguous(),
            context.sizes(),
            matched.order,
            matched.segment_starts,
            rule != "paper",
        )
        return replace(
            packed,
            tokens=tokens,
            sizes=tuple(view for _, view in context.plan.views(new_sizes, following)),
            sources=_move_sources(context, extents, matched),
            positions=_keep_positions(context, matched),
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
    context: BlockContext,
    extents: Extents,
    matched: PackedMatching,
) -> tuple[Tensor, ...] | None:
    """The position of each input token of each group after merging, ``(images, N0)``."""
    sources = context.packed.sources
    if not sources:
        return sources
    starts = extents.starts[context.index][:-1, None]
    new_starts = extents.starts[context.index + 1][:-1, None]
    in_buffer = torch.cat(sources) + starts
    moved = matched.dest[in_buffer] - new_starts
    images_of_groups = [group.images for group in context.plan.groups]
    return moved.long().split(images_of_groups)


def _keep_positions(
    context: BlockContext,
    matched: PackedMatching,
) -> tuple[Tensor, ...] | None:
    """The input positions of the tokens that stay, for each group."""
    positions = context.positions()
    if positions is None:
        return None
    # The first token of each segment stays.
    kept_index = matched.order.index_select(0, matched.segment_starts[:-1])
    kept = positions.index_select(0, kept_index)
    return tuple(view for _, view in context.plan.views(kept, context.index + 1))


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
