"""One transformer block that merges between attention and MLP, on the packed tokens of a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from torch import Tensor, nn

from tome_core.cost import BlockCost
from tome_core.execution import Execution
from tome_core.metric import BlockTensors
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import Plan, join
from tome_core.residuals import record_residuals


class Block(Protocol):
    """An adapter's view of a block: its parts as functions of tokens ``(T, D)`` of any images.

    Both branches end before their drop path, the only part that needs to separate images.
    """

    drop_path1: nn.Module
    drop_path2: nn.Module
    cost: BlockCost

    @property
    def attention_dropout(self) -> float:
        """Probability of dropping an attention weight, 0 outside training."""
        ...

    def attention_input(self, x: Tensor) -> Tensor:
        """Return the normalised tokens ``(T, D)`` that attention reads."""
        ...

    def qkv(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, ``(T, H, d)`` each; values may have another ``d``."""
        ...

    def attention_output(self, attended: Tensor, h: Tensor) -> Tensor:
        """Return the output ``(T, D)`` of the attention branch, a new tensor.

        Args:
            attended: ``(T, H * d)``.
            h: the result of `attention_input`.
        """
        ...

    def mlp(self, x: Tensor) -> Tensor:
        """Return the output ``(T, D)`` of the MLP branch with its norm, a new tensor."""
        ...


class Encoder(Protocol):
    """All blocks in one call, for inference; made by `tome_core.optimize` where that is faster.

    Attributes:
        reads_starts: whether it reads from the device where images begin, as a `BoundedPlan` needs.
    """

    reads_starts: bool

    def supports(self, context: BlockContext) -> bool:
        """Return whether it supports calls like that of ``context``, of the first block."""
        ...

    def __call__(self, context: BlockContext, leading: int | None) -> Packed:
        """Return what `run_block` gives after the last block; overwrites the tokens.

        Args:
            context: the tokens that enter the first block, and how they merge.
            leading: see `run_block`.
        """
        ...


def run_block(
    block: Block,
    execution: Execution,
    context: BlockContext,
    leading: int | None = None,
) -> Packed:
    """Run attention, merging and MLP (paper, section 3: "merge between attention and MLP").

    Args:
        block: the block.
        execution: how it attends and merges.
        context: the tokens that enter the block, and how they merge.
        leading: for the last block, outside training: return only this many tokens at the front of
            each image, ``(B * leading, D)``. They must be prefix tokens, so nothing merges into
            them, and merging is skipped. The result's ``sizes``, ``sources`` and ``positions`` are
            still those of the tokens before the block and do not match its ``tokens``.
    """
    packed = _attend_and_merge(block, execution, context, leading)
    branch = block.mlp(packed.tokens)  # (T, D)
    branch = _drop_path(block.drop_path2, branch, context.plan, context.index + 1)
    tokens = _add(execution, branch, packed.tokens)
    return replace(packed, tokens=tokens)


def _attend_and_merge(
    block: Block,
    execution: Execution,
    context: BlockContext,
    leading: int | None,
) -> Packed:
    """Run the attention branch and merge.

    As a function of its own it frees its tensors before the MLP, which needs the most memory.
    """
    plan = context.plan
    index = context.index
    x = context.packed.tokens  # (T, D)
    h = block.attention_input(x)  # (T, D)
    q, k, v = block.qkv(h)  # (T, H, d) each
    positions = context.positions()  # (T,)
    if context.positional is not None and positions is not None:
        q = context.positional.rotate(q, index, positions)
        k = context.positional.rotate(k, index, positions)
    strategy = execution.strategy
    attended = strategy.attend(context, (q, k, v), block.attention_dropout)  # (T, H * d)
    if leading is not None:
        attended = plan.leading(attended, index, leading)
        h = plan.leading(h, index, leading)
        x = plan.leading(x, index, leading)
    branch = block.attention_output(attended, h)  # (T, D)
    branch = _drop_path(block.drop_path1, branch, plan, index)
    after_attention = context.with_tokens(_add(execution, branch, x))
    packed = after_attention.packed
    if leading is not None:
        # Nothing reads the sizes of leading tokens, so they are not selected.
        return packed
    features = BlockTensors(
        before=x,
        after=packed.tokens,
        q=q,
        k=k,
        v=v,
        sizes=after_attention.sizes,
    )
    merged = strategy.merge(after_attention, features)
    return record_residuals(after_attention, merged)


def _add(
    execution: Execution,
    branch: Tensor,
    tokens: Tensor,
) -> Tensor:
    """Return the sum of two ``(T, D)``, in the memory of ``branch`` if that is allowed."""
    if execution.in_place and branch.dtype == tokens.dtype:
        return branch.add_(tokens)
    return tokens + branch


def _drop_path(
    drop_path: nn.Module,
    branch: Tensor,
    plan: Plan,
    index: int,
) -> Tensor:
    """Apply stochastic depth, which drops whole images; outside training it does nothing."""
    if isinstance(drop_path, nn.Identity) or not drop_path.training:
        return branch
    groups = []
    for _, view in plan.views(branch, index):  # (images, tokens, D)
        groups.append(drop_path(view).flatten(0, 1))
    return join(groups)
