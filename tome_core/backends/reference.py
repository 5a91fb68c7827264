"""The reference strategy: group by group, each a dense batch of images with equally many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tome_core.merge import accumulation_dtype, compose, stayed
from tome_core.metric import Features
from tome_core.positional import Positional
from tome_core.ragged.packed import Merging, Packed
from tome_core.ragged.plan import Plan, join


@dataclass(frozen=True)
class GroupByGroup:
    """Attends and merges with the plain functions of the core (see `tome_core.ragged.packed.Strategy`)."""

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
        attended = []
        views = [[view.transpose(1, 2) for _, view in plan.views(x, index)] for x in qkv]
        for q, k, v, sizes, bias in zip(
            *views, packed.sizes, self._biases(plan, index, packed, positional), strict=True
        ):
            out = merging.attend(q, k, v, sizes if merging.prop_attn else None, dropout, bias)
            attended.append(out.flatten(0, 1))
        return join(attended)

    def _biases(
        self, plan: Plan, index: int, packed: Packed, positional: Positional | None
    ) -> Sequence[Tensor | None]:
        """What relative positions add to the logits of each group."""
        if positional is None or packed.positions is None:
            return [None] * len(plan.groups)
        return [
            positional.bias(index, places if group.tokens[index] < group.tokens[0] else None)
            for group, places in zip(plan.groups, packed.positions, strict=True)
        ]

    def merge(
        self, merging: Merging, plan: Plan, index: int, packed: Packed, features: Features
    ) -> Packed:
        """Match by ``merging.metric``, then combine what shares a destination."""
        if not plan.merges(index):
            return packed
        tokens = []
        sizes = list(packed.sizes)
        sources = list(packed.sources or ())
        positions = list(packed.positions or ())
        views = zip(
            plan.views(packed.tokens, index),
            plan.views(merging.metric(features), index),
            strict=True,
        )
        for number, ((group, x), (_, metric)) in enumerate(views):
            length = group.tokens[index + 1]
            if length < group.tokens[index]:
                with torch.autocast(
                    x.device.type, enabled=False
                ):  # which would compare in its low precision
                    matching = merging.matcher(metric, group.wanted[index], merging.prefix)
                before = sizes[number]
                if before is None:
                    before = torch.ones(
                        x.shape[:2], dtype=accumulation_dtype(x.dtype), device=x.device
                    )
                x, sizes[number] = merging.combine(x, before, matching, length)
                if sources:
                    sources[number] = compose(sources[number], matching.dest)
                if positions:
                    positions[number] = positions[number].gather(
                        1, stayed(matching.dest, matching.merged, length)
                    )
            tokens.append(x.flatten(0, 1))
        return replace(
            packed,
            tokens=join(tokens),
            sizes=tuple(sizes),
            sources=tuple(sources) or None,
            positions=tuple(positions) or None,
        )
