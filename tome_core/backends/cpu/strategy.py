"""The strategy for CPUs with the kernels of this package: one call for all images of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from tome_core.backends.cpu import kernels
from tome_core.backends.reference import ReferenceStrategy
from tome_core.merge import compose, staying_tokens
from tome_core.metric import BlockTensors
from tome_core.positional import Positional
from tome_core.ragged.packed import Merging, Packed
from tome_core.ragged.plan import Plan


@dataclass(frozen=True)
class KernelStrategy(ReferenceStrategy):
    """Attention and merging by the CPU kernels.

    Falls back to `ReferenceStrategy` where they do not apply: relative bias, dropout, other
    matchers, head widths that are not a multiple of `kernels.LANES`.
    """

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
        has_bias = positional is not None and positional.has_bias
        if has_bias or dropout or v.shape != k.shape or not _is_supported(k):
            return super().attend(merging, plan, index, packed, qkv, positional, dropout)
        sizes = packed.flat_sizes(plan, index) if merging.prop_attn else None
        offsets = plan.offsets(q)[index]
        return kernels.attention(q, k, v, sizes, offsets)

    def merge(
        self, merging: Merging, plan: Plan, index: int, packed: Packed, features: BlockTensors
    ) -> Packed:
        """Match and merge all images at once, if ``merging`` is the paper's."""
        if not plan.merges(index):
            return packed
        keys = features.k
        if not merging.follows_paper or not _is_supported(keys):
            return super().merge(merging, plan, index, packed, features)
        offsets = plan.offsets(keys)
        tokens, sizes, dest, merged = kernels.merge(
            packed.tokens,
            keys,
            packed.flat_sizes(plan, index),
            offsets[index],
            offsets[index + 1],
            merging.prefix,
        )
        packed = _follow_tokens(packed, plan, index, dest, merged)
        sizes_of_groups = tuple(view for _, view in plan.views(sizes, index + 1))
        return replace(packed, tokens=tokens, sizes=sizes_of_groups)


def _follow_tokens(packed: Packed, plan: Plan, index: int, dest: Tensor, merged: Tensor) -> Packed:
    """``packed`` with the sources and positions that it tracks moved on by one matching.

    Args:
        dest, merged: of all tokens, ``(T,)``; see `tome_core.matching.Matching`.
    """
    sources = packed.sources
    positions = packed.positions
    if not sources and not positions:
        return packed
    dest_of_groups = [view for _, view in plan.views(dest, index)]
    if sources:
        sources = tuple(map(compose, sources, dest_of_groups))
    if positions:
        merged_of_groups = [view for _, view in plan.views(merged, index)]
        kept = []
        for group, positions_of_group, group_dest, group_merged in zip(
            plan.groups, positions, dest_of_groups, merged_of_groups, strict=True
        ):
            remaining = staying_tokens(group_dest, group_merged, group.tokens[index + 1])
            kept.append(positions_of_group.gather(1, remaining))
        positions = tuple(kept)
    return replace(packed, sources=sources, positions=positions)


def _is_supported(heads: Tensor) -> bool:
    """Whether the kernels can read ``heads (T, H, d)``."""
    return kernels.supports(heads.dtype) and heads.shape[2] % kernels.LANES == 0
