"""The strategy for CPUs with the kernels of this package: all images in one call, whatever their schedules."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from tome_core.backends.cpu import kernels
from tome_core.backends.reference import GroupByGroup
from tome_core.merge import compose, stayed
from tome_core.metric import Features
from tome_core.positional import Positional
from tome_core.ragged.packed import Merging, Packed
from tome_core.ragged.plan import Plan


@dataclass(frozen=True)
class Kernels(GroupByGroup):
    """Kernels where they apply, and group by group where they do not: relative bias, other matchers, odd widths."""

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
        if biased or dropout or v.shape != k.shape or not _fits(k):
            return super().attend(merging, plan, index, packed, qkv, positional, dropout)
        sizes = packed.flat_sizes(plan, index) if merging.prop_attn else None
        return kernels.attention(q, k, v, sizes, plan.offsets(q)[index])

    def merge(
        self, merging: Merging, plan: Plan, index: int, packed: Packed, features: Features
    ) -> Packed:
        """Matching and merging of all images at once, if they are the paper's."""
        if not plan.merges(index):
            return packed
        if not merging.is_papers or not _fits(features.k):
            return super().merge(merging, plan, index, packed, features)
        sizes = packed.flat_sizes(plan, index)
        before, after = plan.offsets(features.k)[index : index + 2]
        tokens, sizes, dest, merged = kernels.merge(
            packed.tokens, features.k, sizes, before, after, merging.prefix
        )
        sources = packed.sources
        positions = packed.positions
        if sources or positions:
            dests = [view for _, view in plan.views(dest, index)]
            if sources:
                sources = tuple(map(compose, sources, dests))
            if positions:
                lengths = [group.tokens[index + 1] for group in plan.groups]
                gone = [view for _, view in plan.views(merged, index)]
                stays = map(stayed, dests, gone, lengths)
                positions = tuple(
                    places.gather(1, stay) for places, stay in zip(positions, stays, strict=True)
                )
        views = tuple(view for _, view in plan.views(sizes, index + 1))
        return replace(packed, tokens=tokens, sizes=views, sources=sources, positions=positions)


def _fits(heads: Tensor) -> bool:
    return heads.dtype in kernels.DTYPES and heads.shape[2] % kernels.LANES == 0
