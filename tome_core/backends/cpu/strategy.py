"""The strategy for CPUs with the kernels of this package: one call for all images of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from tome_core.backends.cpu import kernels
from tome_core.backends.reference import ReferenceStrategy
from tome_core.merge import compose, staying_tokens
from tome_core.metric import BlockTensors
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed


@dataclass(frozen=True)
class KernelStrategy(ReferenceStrategy):
    """Attention and merging by the CPU kernels.

    Falls back to `ReferenceStrategy` where they do not apply: relative bias, dropout, other
    matchers, head widths that are not a multiple of `kernels.LANES`.
    """

    def attend(
        self,
        context: BlockContext,
        qkv: tuple[Tensor, Tensor, Tensor],
        dropout: float,
    ) -> Tensor:
        """Three of ``(T, H, d)`` -> ``(T, H * d)``."""
        q, k, v = qkv
        if context.has_bias or dropout or v.shape != k.shape or not _is_supported(k):
            return super().attend(context, qkv, dropout)
        offsets = context.plan.offsets(q)[context.index]
        return kernels.attention(q, k, v, context.key_sizes(), offsets)

    def merge(self, context: BlockContext, features: BlockTensors) -> Packed:
        """Match and merge all images at once, if the merging is one of `RULES`."""
        packed = context.packed
        if not context.merges:
            return packed
        keys = features.k
        merging = context.merging
        if merging.rule is None or not _is_supported(keys):
            return super().merge(context, features)
        following = context.index + 1
        offsets = context.plan.offsets(keys)
        tokens, sizes, dest, merged = kernels.merge(
            packed.tokens,
            keys,
            context.sizes(),
            offsets[context.index],
            offsets[following],
            merging.prefix,
            merging.rule,
        )
        packed = _follow_tokens(context, dest, merged)
        sizes_of_groups = tuple(view for _, view in context.plan.views(sizes, following))
        return replace(packed, tokens=tokens, sizes=sizes_of_groups)


def _follow_tokens(context: BlockContext, dest: Tensor, merged: Tensor) -> Packed:
    """The packed tokens with the sources and positions that they track moved on by one matching.

    Args:
        dest, merged: of all tokens, ``(T,)``; see `tome_core.matching.Matching`.
    """
    packed = context.packed
    sources = packed.sources
    positions = packed.positions
    if not sources and not positions:
        return packed
    dest_of_groups = [view for _, view in context.views(dest)]
    if sources:
        sources = tuple(map(compose, sources, dest_of_groups))
    if positions:
        kept = []
        for (group, group_merged), group_dest, group_positions in zip(
            context.views(merged), dest_of_groups, positions, strict=True
        ):
            length = group.tokens[context.index + 1]
            remaining = staying_tokens(group_dest, group_merged, length)
            kept.append(group_positions.gather(1, remaining))
        positions = tuple(kept)
    return replace(packed, sources=sources, positions=positions)


def _is_supported(heads: Tensor) -> bool:
    """Whether the kernels can read ``heads (T, H, d)``."""
    return kernels.supports(heads.dtype) and heads.shape[2] % kernels.LANES == 0
