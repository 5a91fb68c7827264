"""All blocks of a plain Vision Transformer in one call of the kernels.

This saves what one Python call for each layer costs. `tome_core.block.run_block` with the strategy
`KernelStrategy` is the reference, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tome_core.backends.cpu.kernels import LANES
from tome_core.backends.cpu.layers import KernelLayerNorm
from tome_core.backends.cpu.library import call
from tome_core.backends.cpu.linears import KernelLinear
from tome_core.backends.cpu.structures import BlockWeights, EncodeArguments
from tome_core.backends.cpu.workspace import WORKSPACE
from tome_core.merge import compose
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import Plan
from tome_core.rules import RULE_NAMES


@dataclass(frozen=True)
class BlockLayers:
    """The layers of a pre-norm block that has no others: norm, attention, norm, MLP."""

    norm1: KernelLayerNorm
    qkv: KernelLinear
    proj: KernelLinear
    norm2: KernelLayerNorm
    fc1: KernelLinear
    fc2: KernelLinear
    heads: int

    @property
    def linears(self) -> tuple[KernelLinear, ...]:
        """The linear layers in the order in which they run."""
        return self.qkv, self.proj, self.fc1, self.fc2

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and tokens."""
        return self.qkv.packed.panels.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """The width of a token, the number of heads and the width of the MLP."""
        return self.qkv.in_features, self.heads, self.fc1.out_features

    @property
    def is_supported(self) -> bool:
        """Whether the kernels can compute the block."""
        dim, heads, hidden = self.shape
        expected_shapes = [(dim, 3 * dim), (dim, dim), (dim, hidden), (hidden, dim)]
        shapes = [(linear.in_features, linear.out_features) for linear in self.linears]
        if shapes != expected_shapes:
            return False
        if dim % (heads * LANES):
            return False
        dtypes = {linear.packed.panels.dtype for linear in self.linears}
        norms = self.norm1, self.norm2
        return len(dtypes) == 1 and all(norm.weight.shape == (dim,) for norm in norms)

    @property
    def weights(self) -> BlockWeights:
        """The addresses of all weights, valid as long as the layers are."""
        qkv, proj, fc1, fc2 = (linear.packed for linear in self.linears)
        return BlockWeights(
            norm1_weight=self.norm1.weight.data_ptr(),
            norm1_bias=self.norm1.bias.data_ptr(),
            norm1_eps=self.norm1.eps,
            qkv_weight=qkv.panels.data_ptr(),
            qkv_bias=qkv.bias.data_ptr(),
            proj_weight=proj.panels.data_ptr(),
            proj_bias=proj.bias.data_ptr(),
            norm2_weight=self.norm2.weight.data_ptr(),
            norm2_bias=self.norm2.bias.data_ptr(),
            norm2_eps=self.norm2.eps,
            fc1_weight=fc1.panels.data_ptr(),
            fc1_bias=fc1.bias.data_ptr(),
            fc2_weight=fc2.panels.data_ptr(),
            fc2_bias=fc2.bias.data_ptr(),
        )


def are_supported(blocks: Sequence[BlockLayers]) -> bool:
    """Return whether the kernels can compute all of ``blocks`` in one call."""
    variants = {(block.shape, block.dtype) for block in blocks}
    return len(variants) == 1 and all(block.is_supported for block in blocks)


class KernelEncoder:
    """The blocks of a model (see `tome_core.block.Encoder`), all of one shape and dtype.

    Raises:
        ValueError: the blocks differ, or the kernels cannot compute them.
    """

    reads_starts = False  # the lengths of the images come from the plan, on the host

    def __init__(self, blocks: Sequence[BlockLayers]) -> None:
        if not are_supported(blocks):
            raise ValueError("the blocks are not all of one shape and dtype that the kernels know")
        self._blocks = tuple(blocks)  # keeps the weights alive: the kernels read them by address
        self.dtype = blocks[0].dtype
        self.dim, self.heads, self.hidden = blocks[0].shape
        self._weights = (BlockWeights * len(blocks))(*[block.weights for block in blocks])

    def __reduce__(self) -> tuple[Any, ...]:
        return KernelEncoder, (self._blocks,)  # a copy has its weights at other addresses

    def supports(self, context: BlockContext) -> bool:
        """Return whether the encoder can run the blocks from ``context`` on.

        It tracks sources, but no positions and no residuals. Gradients need no check: only
        `optimize` makes this encoder, and its models compute none.
        """
        packed = context.packed
        tokens = packed.tokens
        if context.merging.rule is None:
            return False
        if packed.positions is not None or packed.residuals is not None:
            return False
        return tokens.device.type == "cpu" and tokens.dtype == self.dtype

    def __call__(self, context: BlockContext, leading: int | None) -> Packed:
        """Run all blocks; the tokens ``(T, D)`` of ``context`` are overwritten.

        For ``leading`` see `tome_core.block.run_block`.
        """
        depth = len(self._blocks)
        plan = context.plan
        tokens, sizes, dest = self._run(context, leading)
        rows = len(plan.order) * leading if leading else plan.length(depth)
        packed = replace(context.packed, tokens=tokens[:rows])
        if leading or not plan.merges_anywhere:
            return packed
        return replace(
            packed,
            sizes=tuple(view for _, view in plan.views(sizes, depth)),
            sources=_compose_sources(plan, packed, dest),
        )

    def _run(
        self,
        context: BlockContext,
        leading: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the kernel.

        Returns:
            Tokens, sizes, and int64 ``dest (depth, T)``, the destinations of tokens in each block;
            if sources are not traced, ``dest`` has one row, which each block overwrites.
        """
        tokens = context.packed.tokens.contiguous()
        rows = len(tokens)
        rule = context.merging.rule
        assert rule is not None  # `supports` has checked it
        offsets = context.plan.offsets(tokens)
        is_traced = context.packed.sources is not None
        # Merging reads one buffer and writes another.
        other_tokens = WORKSPACE.empty(rows, self.dim, self.dtype)
        wide = WORKSPACE.empty(rows, max(3 * self.dim, self.hidden), self.dtype)
        sizes = tokens.new_empty(rows, dtype=torch.float32)
        other_sizes = torch.empty_like(sizes)
        bias = torch.empty_like(sizes)
        dest = tokens.new_empty(len(self._blocks) if is_traced else 1, rows, dtype=torch.int64)
        merged = tokens.new_empty(rows, dtype=torch.bool)
        arguments = EncodeArguments(
            blocks=addressof(self._weights),
            depth=len(self._blocks),
            images=offsets.shape[1] - 1,
            dim=self.dim,
            heads=self.heads,
            hidden=self.hidden,
            prefix=context.merging.prefix,
            leading=leading or 0,
            proportional=context.merging.prop_attn,
            rule=RULE_NAMES.index(rule),
            offsets=offsets.data_ptr(),
            tokens=tokens.data_ptr(),
            other_tokens=other_tokens.data_ptr(),
            wide=wide.data_ptr(),
            sizes=sizes.data_ptr(),
            other_sizes=other_sizes.data_ptr(),
            bias=bias.data_ptr(),
            dest=dest.data_ptr(),
            dest_stride=rows if is_traced else 0,
            merged=merged.data_ptr(),
        )
        result_is_in_other = call("encode", self.dtype, arguments)
        if result_is_in_other:
            return other_tokens, other_sizes, dest
        return tokens, sizes, dest


def _compose_sources(plan: Plan, packed: Packed, dest: Tensor) -> tuple[Tensor, ...] | None:
    """Follow each input token through ``dest (depth, T)``, the destinations in each block."""
    sources = packed.sources
    if sources is None:
        return None
    for index, dest_of_block in enumerate(dest):
        if not plan.merges(index):
            continue
        dest_of_groups = [view for _, view in plan.views(dest_of_block, index)]
        sources = tuple(map(compose, sources, dest_of_groups))
    return sources
