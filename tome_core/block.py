"""One transformer block that merges between attention and MLP, on a packed buffer of several groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from tome_core.attention import Attend
from tome_core.cost import BlockCost
from tome_core.matching import Matcher
from tome_core.merge import Combine, accumulation_dtype, compose, stayed, weighted_mean
from tome_core.metric import Features, Metric, mean_key
from tome_core.plan import Plan
from tome_core.positional import Positional


class Block(Protocol):
    """What an adapter says about a block: its parts as functions of tokens, ``(T, D)``, whoever they belong to.

    Both branches end before their drop path, which is the only part that needs to know images apart.
    """

    drop_path1: nn.Module
    drop_path2: nn.Module
    cost: BlockCost

    @property
    def attention_dropout(self) -> float:
        """Probability of dropping an attention weight, 0 outside training."""
        ...

    def attention_input(self, x: Tensor) -> Tensor:
        """The normalised tokens ``(T, D)`` that attention reads."""
        ...

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values, each ``(T, H, d)``; values may be of another width ``d``."""
        ...

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """The branch's output ``(T, D)`` from ``attended (T, H * d)`` and what `attention_input` gave."""
        ...

    def mlp(self, x: Tensor) -> Tensor:
        """The second branch, ``(T, D)``, normalisation included."""
        ...


@dataclass(frozen=True)
class Merging:
    """What a model merges by: fixed when it is patched, shared by all its blocks.

    Attributes:
        metric: what of the tokens ``matcher`` is given.
        combine: how the tokens of one destination become one.
    """

    matcher: Matcher
    attend: Attend
    prop_attn: bool
    prefix: int
    metric: Metric = mean_key
    combine: Combine = weighted_mean


@dataclass(frozen=True)
class Packed:
    """All tokens of a batch between two blocks; travels through the call, never lives on the model.

    Attributes:
        tokens: ``(T, D)``.
        sizes: for each group, how many patches each token stands for, ``(images, tokens)``; None while all are 1.
        sources: for each group, where each input token is now, ``(images, N0)``; None where nobody asked.
        positions: for each group, the input position that each token keeps, ``(images, tokens)``; None where attention
            reads none.
    """

    tokens: Tensor
    sizes: tuple[Tensor | None, ...]
    sources: tuple[Tensor, ...] | None
    positions: tuple[Tensor, ...] | None = None


def run_block(
    block: Block, merging: Merging, plan: Plan, index: int, packed: Packed, positional: Positional | None
) -> Packed:
    """Apply block ``index``: attention, merging, MLP (paper, section 3: "merge between attention and MLP")."""
    x = packed.tokens
    h = block.attention_input(x)
    q, k, v = block.qkv(h)
    places: Sequence[Tensor | None] = packed.positions or [None] * len(plan.groups)
    if positional is not None and packed.positions is not None:
        positions = _join([positions.flatten() for positions in packed.positions])
        q, k = positional.turn(q, index, positions), positional.turn(k, index, positions)
    dropout = block.attention_dropout
    attended = []
    for (_, q_), (_, k_), (_, v_), sizes, place in zip(
        plan.views(q, index), plan.views(k, index), plan.views(v, index), packed.sizes, places, strict=True
    ):
        bias = None if positional is None or place is None else positional.bias(index, place)
        counted = sizes if merging.prop_attn else None
        out = merging.attend(q_.transpose(1, 2), k_.transpose(1, 2), v_.transpose(1, 2), counted, dropout, bias)
        attended.append(out.flatten(0, 1))
    branch = block.attention_output(_join(attended), h)
    packed = replace(packed, tokens=x + _drop_path(block.drop_path1, branch, plan, index))
    packed = merge_groups(merging, plan, index, packed, Features(x, packed.tokens, q, k, v))
    branch = block.mlp(packed.tokens)
    return replace(packed, tokens=packed.tokens + _drop_path(block.drop_path2, branch, plan, index + 1))


def merge_groups(merging: Merging, plan: Plan, index: int, packed: Packed, features: Features) -> Packed:
    """Merge every group's tokens as far as its schedule says."""
    if all(group.tokens[index] == group.tokens[index + 1] for group in plan.groups):
        return packed
    tokens, sizes = [], list(packed.sizes)
    sources, positions = list(packed.sources or ()), list(packed.positions or ())
    views = zip(plan.views(packed.tokens, index), plan.views(merging.metric(features), index), strict=True)
    for number, ((group, x), (_, metric)) in enumerate(views):
        length = group.tokens[index + 1]
        if length < group.tokens[index]:
            with torch.autocast(x.device.type, enabled=False):  # which would compare in the low precision it is for
                matching = merging.matcher(metric, group.wanted[index], merging.prefix)
            before = sizes[number]
            if before is None:
                before = torch.ones(x.shape[:2], dtype=accumulation_dtype(x.dtype), device=x.device)
            x, sizes[number] = merging.combine(x, before, matching, length)
            if sources:
                sources[number] = compose(sources[number], matching.dest)
            if positions:
                positions[number] = positions[number].gather(1, stayed(matching.dest, matching.merged, length))
        tokens.append(x.flatten(0, 1))
    return Packed(_join(tokens), tuple(sizes), tuple(sources) or None, tuple(positions) or None)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _drop_path(drop: nn.Module, branch: Tensor, plan: Plan, index: int) -> Tensor:
    """Stochastic depth drops whole images, so it needs them apart; outside training it is nothing."""
    if isinstance(drop, nn.Identity) or not drop.training:
        return branch
    return _join([drop(view).flatten(0, 1) for _, view in plan.views(branch, index)])
