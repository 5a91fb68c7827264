"""The reference strategy: group by group, each a dense batch of images of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tome_core.matching import Matching
from tome_core.merge import accumulation_dtype, compose, staying_tokens
from tome_core.metric import BlockTensors
from tome_core.positional import Positional
from tome_core.ragged.packed import Merging, Packed
from tome_core.ragged.plan import Group, Plan, join


@dataclass(frozen=True)
class ReferenceStrategy:
    """Attention and merging with the plain functions of the core, one group at a time.

    Implements `tome_core.ragged.packed.Strategy`.
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
        queries, keys, values = (_heads_of_groups(x, plan, index) for x in qkv)
        biases = self._biases(plan, index, packed, positional)
        attended = []
        for q, k, v, sizes, bias in zip(queries, keys, values, packed.sizes, biases, strict=True):
            sizes_of_keys = sizes if merging.prop_attn else None
            out = merging.dense_attention(q, k, v, sizes_of_keys, dropout, bias)  # (B, N, H * d)
            attended.append(out.flatten(0, 1))
        return join(attended)

    def _biases(
        self,
        plan: Plan,
        index: int,
        packed: Packed,
        positional: Positional | None,
    ) -> Sequence[Tensor | None]:
        """Return what relative positions add to the logits of each group; None if nothing."""
        if positional is None or packed.positions is None:
            return [None] * len(plan.groups)
        biases = []
        for group, positions in zip(plan.groups, packed.positions, strict=True):
            has_merged = group.tokens[index] < group.tokens[0]
            bias = positional.bias(index, positions if has_merged else None)
            biases.append(bias)
        return biases

    def merge(
        self, merging: Merging, plan: Plan, index: int, packed: Packed, features: BlockTensors
    ) -> Packed:
        """Match by ``merging.metric``, then combine the tokens that share a destination."""
        if not plan.merges(index):
            return packed
        tokens_of_groups = [view for _, view in plan.views(packed.tokens, index)]
        metric = merging.metric(features)
        metrics = [view for _, view in plan.views(metric, index)]
        merged_tokens = []
        sizes = list(packed.sizes)
        sources = list(packed.sources or ())
        positions = list(packed.positions or ())
        for number, group in enumerate(plan.groups):
            x = tokens_of_groups[number]  # (B, N, D)
            length = group.tokens[index + 1]
            if length < group.tokens[index]:
                matching = _match(merging, group, index, metrics[number])
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


def _heads_of_groups(x: Tensor, plan: Plan, index: int) -> list[Tensor]:
    """``(T, H, d)`` as ``(B, H, N, d)`` for each group."""
    return [view.transpose(1, 2) for _, view in plan.views(x, index)]


def _match(merging: Merging, group: Group, index: int, metric: Tensor) -> Matching:
    """Match the tokens of ``group`` by ``metric (B, N, d)``."""
    # Autocast would compare tokens in its low precision.
    with torch.autocast(metric.device.type, enabled=False):
        return merging.matcher(metric, group.wanted[index], merging.prefix)


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
