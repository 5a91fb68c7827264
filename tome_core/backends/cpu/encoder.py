"""All blocks of a plain Vision Transformer in one call of the kernels.

This saves what one Python call for each layer costs. `tome_core.block.run_block` with the strategy
`KernelStrategy` is the reference, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from tome_core.backends.cpu.kernels import LANES
from tome_core.backends.cpu.layers import KernelLayerNorm
from tome_core.backends.cpu.library import call
from tome_core.backends.cpu.linears import KernelLinear, KernelMlp
from tome_core.backends.cpu.workspace import WORKSPACE
from tome_core.merge import compose
from tome_core.merging import Merging
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import Plan


@dataclass(frozen=True)
class BlockLayers:
    """The layers of a pre-norm block that has no others: norm, attention, norm, MLP."""

    norm1: KernelLayerNorm
    qkv: KernelLinear
    proj: KernelLinear
    norm2: KernelLayerNorm
    mlp: KernelMlp
    heads: int

    @property
    def linears(self) -> tuple[KernelLinear, ...]:
        """The linear layers in the order in which they run."""
        return self.qkv, self.proj, self.mlp.fc1, self.mlp.fc2

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and tokens."""
        return self.qkv.packed.panels.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """The width of a token, the number of heads and the width of the MLP."""
        return self.qkv.in_features, self.heads, self.mlp.fc1.out_features

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
    def weights(self) -> list[Tensor]:
        """All weights, in the order of the fields of Block in encoder.cpp."""
        qkv, proj, fc1, fc2 = (linear.packed for linear in self.linears)
        return [
            self.norm1.weight,
            self.norm1.bias,
            qkv.panels,
            qkv.bias,
            proj.panels,
            proj.bias,
            self.norm2.weight,
            self.norm2.bias,
            fc1.panels,
            fc1.bias,
            fc2.panels,
            fc2.bias,
        ]


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
        self._blocks = tuple(blocks)
        self.dtype = blocks[0].dtype
        self.dim, self.heads, self.hidden = blocks[0].shape
        # Keeps the weights alive: the kernels read them by address.
        self._weights = [block.weights for block in blocks]
        self._addresses = _pack_fields(list(chain.from_iterable(self._weights)))
        eps_of_blocks = [[block.norm1.eps, block.norm2.eps] for block in blocks]
        self._eps = torch.tensor(eps_of_blocks, dtype=torch.float32, device="cpu")

    def __deepcopy__(self, memo: dict[int, object]) -> KernelEncoder:
        return self  # immutable

    def __reduce__(self) -> tuple[Any, ...]:
        return KernelEncoder, (self._blocks,)  # addresses are not valid in another process

    def supports(self, merging: Merging, packed: Packed) -> bool:
        """Return whether the encoder can run ``packed`` as ``merging`` says.

        It tracks sources, but no positions. Gradients need no check: only `optimize` makes this
        encoder, and its models compute none.
        """
        tokens = packed.tokens
        if not merging.follows_paper or packed.positions is not None:
            return False
        return tokens.device.type == "cpu" and tokens.dtype == self.dtype

    def __call__(self, merging: Merging, plan: Plan, packed: Packed, leading: int | None) -> Packed:
        """Run all blocks; ``packed.tokens (T, D)`` are overwritten.

        For ``leading`` see `tome_core.block.run_block`.
        """
        depth = len(self._blocks)
        buffers = self._allocate(packed)
        result_is_in_other = self._run(merging, plan, buffers, leading)
        tokens = buffers.tokens
        sizes = buffers.sizes
        if result_is_in_other:
            tokens = buffers.other_tokens
            sizes = buffers.other_sizes
        rows = len(plan.order) * leading if leading else plan.length(depth)
        packed = replace(packed, tokens=tokens[:rows])
        nothing_merged = not any(plan.merges(index) for index in range(depth))
        if leading or nothing_merged:
            return packed
        return replace(
            packed,
            sizes=tuple(view for _, view in plan.views(sizes, depth)),
            sources=_compose_sources(plan, packed, buffers.dest),
        )

    def _allocate(self, packed: Packed) -> _Buffers:
        tokens = packed.tokens.contiguous()
        rows = len(tokens)
        wide = max(3 * self.dim, self.hidden)
        is_traced = packed.sources is not None
        dest_rows = len(self._blocks) if is_traced else 1
        return _Buffers(
            tokens=tokens,
            other_tokens=WORKSPACE.empty(rows, self.dim, self.dtype),
            normed=WORKSPACE.empty(rows, self.dim, self.dtype),
            wide=WORKSPACE.empty(rows, wide, self.dtype),
            sizes=tokens.new_empty(rows, dtype=torch.float32),
            other_sizes=tokens.new_empty(rows, dtype=torch.float32),
            bias=tokens.new_empty(rows, dtype=torch.float32),
            dest=tokens.new_empty(dest_rows, rows, dtype=torch.int64),
            merged=tokens.new_empty(rows, dtype=torch.bool),
            dest_stride=rows if is_traced else 0,
        )

    def _run(self, merging: Merging, plan: Plan, buffers: _Buffers, leading: int | None) -> bool:
        """Run the kernel; return whether the result is in the "other" buffers."""
        offsets = plan.offsets(buffers.tokens)
        images = offsets.shape[1] - 1
        # In the order of the fields of Pass in encoder.cpp.
        fields: list[Tensor | int] = [
            len(self._blocks),
            images,
            self.dim,
            self.heads,
            self.hidden,
            merging.prefix,
            leading or 0,
            merging.prop_attn,
            buffers.dest_stride,
            self._addresses,
            self._eps,
            offsets,
            buffers.tokens,
            buffers.other_tokens,
            buffers.normed,
            buffers.wide,
            buffers.sizes,
            buffers.other_sizes,
            buffers.bias,
            buffers.dest,
            buffers.merged,
        ]
        return bool(call("encode", self.dtype, _pack_fields(fields)))


@dataclass(frozen=True)
class _Buffers:
    """The memory that one call of the kernel uses; merging reads one buffer and writes another.

    Attributes:
        tokens, other_tokens, normed: ``(T, D)``.
        wide: ``(T, max(3 * D, hidden))``: queries, keys and values; later the hidden values.
        sizes, other_sizes, bias: float32 ``(T,)``; the bias is log2 of the sizes.
        dest: int64 ``(depth, T)`` if sources are traced; else ``(1, T)``, and each block overwrites
            it.
        merged: bool ``(T,)``.
        dest_stride: the distance between the rows of ``dest`` of two blocks.
    """

    tokens: Tensor
    other_tokens: Tensor
    normed: Tensor
    wide: Tensor
    sizes: Tensor
    other_sizes: Tensor
    bias: Tensor
    dest: Tensor
    merged: Tensor
    dest_stride: int


def _pack_fields(values: Sequence[Tensor | int]) -> Tensor:
    """A C structure of 8-byte fields: numbers, and the addresses of tensors' data."""
    fields = []
    for value in values:
        if isinstance(value, Tensor):
            fields.append(value.data_ptr())
        else:
            fields.append(int(value))
    return torch.tensor(fields, dtype=torch.int64, device="cpu")


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
