"""The reference strategy: group by group, each a dense batch of images of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tome_core.attention import Attend, fused_attention
from tome_core.matching import Matching
from tome_core.merge import accumulation_dtype, compose, staying_tokens
from tome_core.merging import Merging
from tome_core.metric import BlockTensors
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import join


@dataclass(frozen=True)
class ReferenceStrategy:
    """Attention and merging with the plain functions of the core, one group at a time.

    Implements `tome_core.execution.Strategy`.

    Attributes:
        dense_attention: attention over images of one length.
    """

    dense_attention: Attend = field(default=fused_attention)

    def attend(
        self,
        context: BlockContext,
        qkv: tuple[Tensor, Tensor, Tensor],
        dropout: float,
    ) -> Tensor:
        """Three of ``(T, H, d)`` -> ``(T, H * d)``."""
        queries, keys, values = (_heads_of_groups(context, x) for x in qkv)
        sizes_of_groups = context.packed.sizes
        biases = _biases(context)
        attended = []
        for q, k, v, sizes, bias in zip(
            queries, keys, values, sizes_of_groups, biases, strict=True
        ):
            key_sizes = sizes if context.merging.prop_attn else None
            out = self.dense_attention(q, k, v, key_sizes, dropout, bias)  # (B, N, H * d)
            attended.append(out.flatten(0, 1))
        return join(attended)

    def merge(self, context: BlockContext, features: BlockTensors) -> Packed:
        """Match by the metric, then combine the tokens that share a destination."""
        packed = context.packed
        if not context.merges:
            return packed
        merging = context.merging
        index = context.index
        metrics = [view for _, view in context.views(merging.metric(features))]
        merged_tokens = []
        sizes = list(packed.sizes)
        sources = list(packed.sources or ())
        positions = list(packed.positions or ())
        for number, (group, x) in enumerate(context.views(packed.tokens)):  # x: (B, N, D)
            length = group.tokens[index + 1]
            if length < group.tokens[index]:
                matching = _match(merging, metrics[number], group.wanted[index])
                x, sizes[number] = _combine(merging, x, sizes[number], matching, length)
                if sources:
                    sources[number] = compose(sources[number], matching.dest)
                if positions:
                    kept_index = staying_tokens(matching.dest, matching.merged, length)
                    positions[number] = positions[number].gather(1, kept_index)
            merged_tokens.append(x.flatten(0, 1))
        return replace(
            packed,
            tokens=join(merged_tokens),
            sizes=tuple(sizes),
            sources=tuple(sources) or None,
            positions=tuple(positions) or None,
        )


def _heads_of_groups(context: BlockContext, x: Tensor) -> list[Tensor]:
    """``(T, H, d)`` as ``(B, H, N, d)`` for each group."""
    return [view.transpose(1, 2) for _, view in context.views(x)]


def _biases(context: BlockContext) -> Sequence[Tensor | None]:
    """Return what relative positions add to the logits of each group; None if nothing."""
    groups = context.plan.groups
    index = context.index
    positional = context.positional
    if positional is None or context.packed.positions is None:
        return [None] * len(groups)
    biases = []
    for group, positions in zip(groups, context.packed.positions, strict=True):
        has_merged = group.tokens[index] < group.tokens[0]
        bias = positional.bias(index, positions if has_merged else None)
        biases.append(bias)
    return biases


def _match(merging: Merging, metric: Tensor, r: int) -> Matching:
    """Match tokens by ``metric (B, N, d)``."""
    # Autocast would compare tokens in its low precision.
    with torch.autocast(metric.device.type, enabled=False):
        return merging.matcher(metric, r, merging.prefix)


def _combine(
    merging: Merging,
    x: Tensor,
    sizes: Tensor | None,
    matching: Matching,
    length: int,
) -> tuple[Tensor, Tensor]:
    """Combine tokens ``x (B, N, D)``; ``sizes (B, N)`` are None while all are 1."""
    if sizes is None:
        sizes = torch.ones(
            x.shape[:2],
            dtype=accumulation_dtype(x.dtype),
            device=x.device,
        )
    return merging.combine(x, sizes, matching, length)
