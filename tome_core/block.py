"""One transformer block that merges between attention and MLP, on a packed buffer of several groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from torch import Tensor, nn

from tome_core.cost import BlockCost
from tome_core.metric import Features
from tome_core.positional import Positional
from tome_core.ragged.packed import Merging, Packed
from tome_core.ragged.plan import Plan, join


class Block(Protocol):
    """What an adapter says about a block: its parts as functions of tokens, ``(T, D)``, whoever they belong to.

    Both branches end before their drop path, which is the only part that needs to know images
    apart.
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
        """The branch's output ``(T, D)``, a new tensor, from ``attended (T, H * d)`` and `attention_input`'s."""
        ...

    def mlp(self, x: Tensor) -> Tensor:
        """The second branch, ``(T, D)``, normalisation included: a new tensor."""
        ...


def run_block(
    block: Block,
    merging: Merging,
    plan: Plan,
    index: int,
    packed: Packed,
    positional: Positional | None,
    leading: int | None = None,
) -> Packed:
    """Apply block ``index``: attention, merging, MLP (paper, section 3: "merge between attention and MLP").

    Args:
        leading: of the last block, if so many tokens at the front of each image, which are prefix
            tokens, are all that is read of it: what is left then are these, ``(B * leading, D)``.
            Nothing merges into them. Not in training.
    """
    packed = _attend_and_merge(block, merging, plan, index, packed, positional, leading)
    branch = block.mlp(packed.tokens)
    branch = _drop_path(block.drop_path2, branch, plan, index + 1)
    return replace(packed, tokens=_add(merging, branch, packed.tokens))


def _attend_and_merge(
    block: Block,
    merging: Merging,
    plan: Plan,
    index: int,
    packed: Packed,
    positional: Positional | None,
    leading: int | None,
) -> Packed:
    """The first branch. What it computes on its way is gone when the MLP, which takes the most memory, begins."""
    x = packed.tokens
    h = block.attention_input(x)
    q, k, v = block.qkv(h)
    if positional is not None and packed.positions is not None:
        positions = join([positions.flatten() for positions in packed.positions])
        q = positional.turn(q, index, positions)
        k = positional.turn(k, index, positions)
    strategy = merging.strategy
    attended = strategy.attend(
        merging, plan, index, packed, (q, k, v), positional, block.attention_dropout
    )
    if leading is not None:
        attended, h, x = (plan.leading(rows, index, leading) for rows in (attended, h, x))
    branch = block.attention_output(attended, h)
    packed = replace(
        packed, tokens=_add(merging, _drop_path(block.drop_path1, branch, plan, index), x)
    )
    if leading is not None:
        return packed
    return strategy.merge(merging, plan, index, packed, Features(x, packed.tokens, q, k, v))


def _add(merging: Merging, branch: Tensor, tokens: Tensor) -> Tensor:
    """The sum of two ``(T, D)``, in the place of ``branch`` if that is allowed."""
    return (
        branch.add_(tokens)
        if merging.in_place and branch.dtype == tokens.dtype
        else tokens + branch
    )


def _drop_path(drop: nn.Module, branch: Tensor, plan: Plan, index: int) -> Tensor:
    """Stochastic depth drops whole images, so it needs them apart; outside training it is nothing."""
    if isinstance(drop, nn.Identity) or not drop.training:
        return branch
    return join([drop(view).flatten(0, 1) for _, view in plan.views(branch, index)])
