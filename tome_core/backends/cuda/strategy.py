"""Any block on a GPU: attention and merging of a whole buffer by kernels, whatever its layers and its positions are.

Where all blocks are plain ones, `tome_core.backends.cuda.encoder` runs them whole.
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
    launch_attention,
    lies_in_rows,
)
from tome_core.backends.cuda.extents import Extents
from tome_core.backends.cuda.matching import launch_match, match
from tome_core.backends.cuda.merging import launch_merge, merge
from tome_core.backends.padded import Offsets
from tome_core.metric import Features
from tome_core.positional import Positional
from tome_core.ragged.packed import Merging, Packed
from tome_core.ragged.plan import Plan

WIDTHS = range(16, 129)  # of heads: what tiles were chosen for


class _Kernels(NamedTuple):
    attention: Any
    match: Any
    merge: Any


_LAUNCHERS = _Kernels(launch_attention, launch_match, launch_merge)
_OPERATORS = _Kernels(attention, match, merge)


@dataclass(frozen=True)
class TritonStrategy(Offsets):
    """Kernels where they apply, else the operators of `Offsets`: relative bias, dropout, other matchers, gradients."""

    # A graph reads what the plan that it was recorded with keeps, for as long as there is a graph.
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
        q, k, v = qkv
        biased = positional is not None and positional.biased
        if (
            biased
            or dropout
            or not (q.shape == k.shape == v.shape)
            or not _take(*qkv)
            or not _are_heads(*qkv)
        ):
            return super().attend(merging, plan, index, packed, qkv, positional, dropout)
        extents = self._extents(plan, q)
        sizes = packed.flat_sizes(plan, index) if merging.prop_attn else None
        rows = map(_in_rows, qkv)
        attended: Tensor = _kernels(q).attention(
            *rows, sizes, extents.starts[index], extents.longest[index]
        )
        return attended

    def merge(
        self, merging: Merging, plan: Plan, index: int, packed: Packed, features: Features
    ) -> Packed:
        """Matching and merging of all images at once, if they are the paper's."""
        if not plan.merges(index):
            return packed
        x = packed.tokens
        keys = features.k
        if not merging.is_papers or not _take(x) or not _take(keys) or not _are_heads(keys):
            return super().merge(merging, plan, index, packed, features)
        extents = self._extents(plan, x)
        kernels = _kernels(x)
        before, after = extents.starts[index : index + 2]
        left = extents.lengths[index + 1]
        matched = kernels.match(
            _in_rows(keys), before, after, extents.longest[0], left, merging.prefix
        )
        sizes = packed.flat_sizes(plan, index)
        tokens, new_sizes = kernels.merge(x.contiguous(), sizes, matched.order, matched.begins)
        sources = packed.sources
        positions = packed.positions
        if sources:
            places = torch.cat(sources) + before[:-1, None]
            moved = matched.dest[places] - after[:-1, None]
            sources = moved.long().split([group.images for group in plan.groups])
        if positions:
            # The first of those that share a destination stays.
            stays = matched.order.index_select(0, matched.begins[:-1])
            kept = torch.cat([part.flatten() for part in positions]).index_select(0, stays)
            positions = tuple(view for _, view in plan.views(kept, index + 1))
        return replace(
            packed,
            tokens=tokens,
            sizes=tuple(view for _, view in plan.views(new_sizes, index + 1)),
            sources=sources,
            positions=positions,
        )

    def _extents(self, plan: Plan, like: Tensor) -> Extents:
        """Those of ``plan``, which is kept if a graph is recorded now; it must have run once before that."""
        records = like.is_cuda and type(like) is Tensor and torch.cuda.is_current_stream_capturing()
        if records and not any(plan is kept for kept in self._recorded):
            self._recorded.append(plan)
        return Extents.of(plan, like)


def _kernels(like: Tensor) -> _Kernels:
    """For real tensors those without operators around them, which cost the host."""
    return _LAUNCHERS if type(like) is Tensor else _OPERATORS


def _take(*tensors: Tensor) -> bool:
    """Whether kernels read these: of one dtype that they know, on a device of theirs, without gradients."""
    device = tensors[0].device.type
    dtype = tensors[0].dtype
    here = device == "cuda" or INTERPRETED
    known = dtype in DTYPES and all(tensor.dtype == dtype for tensor in tensors)
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return here and known and not learns and not torch.is_autocast_enabled(device)


def _are_heads(*heads: Tensor) -> bool:
    return all(part.shape[2] in WIDTHS for part in heads)


def _in_rows(heads: Tensor) -> Tensor:
    return heads if lies_in_rows(heads) else heads.contiguous()
