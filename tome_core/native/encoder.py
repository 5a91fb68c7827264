"""All blocks of a plain Vision Transformer in one call of the kernels: what calls from Python cost is saved.

`run_block` with the strategy `Kernels` is its reference, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tome_core.layers import KernelLayerNorm
from tome_core.linears import KernelLinear, KernelMlp
from tome_core.merge import compose
from tome_core.native import LANES
from tome_core.native.library import call
from tome_core.native.strategy import Kernels, is_papers
from tome_core.packed import Merging, Packed
from tome_core.plan import Plan
from tome_core.workspace import WORKSPACE


@dataclass(frozen=True)
class BlockLayers:
    """The layers of a block that begins both branches with a norm, and does nothing that is not here."""

    norm1: KernelLayerNorm
    qkv: KernelLinear
    proj: KernelLinear
    norm2: KernelLayerNorm
    mlp: KernelMlp
    heads: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width of a token, heads, width of the MLP."""
        return self.qkv.in_features, self.heads, self.mlp.fc1.out_features

    @property
    def fits(self) -> bool:
        """Whether the kernels can compute it: heads of a width they know, which together are as wide as a token."""
        dim, heads, _ = self.shape
        same = self.qkv.out_features == 3 * dim and self.proj.in_features == self.proj.out_features == dim
        return same and self.mlp.fc2.out_features == dim and dim % (heads * LANES) == 0

    @property
    def weights(self) -> list[Tensor]:
        """In the order of Block in encoder.cpp."""
        found = [self.norm1.weight, self.norm1.bias]
        for linear in (self.qkv, self.proj):
            found += [linear.packed.panels, linear.packed.bias]
        found += [self.norm2.weight, self.norm2.bias]
        for linear in (self.mlp.fc1, self.mlp.fc2):
            found += [linear.packed.panels, linear.packed.bias]
        return found


class Encoder:
    """The blocks of a model, made of ``layers``, which are all of one shape and dtype.

    Raises:
        ValueError: they are not, or do not fit.
    """

    def __init__(self, layers: Sequence[BlockLayers]) -> None:
        self._weights = [block.weights for block in layers]  # kept alive: the kernels are given their addresses
        self.dtype = self._weights[0][2].dtype
        if {block.shape for block in layers} != {layers[0].shape} or not all(block.fits for block in layers):
            raise ValueError("the blocks are not all of one shape that the kernels know")
        self.dim, self.heads, self.hidden = layers[0].shape
        self._addresses = torch.tensor([[weight.data_ptr() for weight in weights] for weights in self._weights])
        self._eps = torch.tensor([[block.norm1.eps, block.norm2.eps] for block in layers])

    def __deepcopy__(self, memo: dict[int, object]) -> Encoder:
        return self  # nothing can change it

    def takes(self, merging: Merging, packed: Packed) -> bool:
        """Whether it would do what ``merging`` says with ``packed``."""
        dense = packed.positions is None and packed.tokens.dtype == self.dtype
        return dense and isinstance(merging.strategy, Kernels) and is_papers(merging)

    def __call__(self, merging: Merging, plan: Plan, packed: Packed, leading: int | None) -> Packed:
        """Run all blocks; ``packed.tokens (T, D)`` are used up. For ``leading`` see `tome_core.block.run_block`."""
        tokens, depth = packed.tokens.contiguous(), len(self._weights)
        offsets, rows = plan.offsets(tokens), len(tokens)
        tensors = [tokens, *(WORKSPACE.empty(rows, width, self.dtype) for width in (self.dim, self.dim, 3 * self.dim))]
        sizes, other_sizes, bias = torch.empty(3, rows)
        traced = packed.sources is not None
        dest = torch.empty(depth if traced else 1, rows, dtype=torch.int64)
        merged = torch.empty(rows, dtype=torch.bool)
        shape = depth, offsets.shape[1] - 1, self.dim, self.heads, self.hidden, merging.prefix, leading or 0
        flags = merging.prop_attn, rows if traced else 0
        where = sizes, other_sizes, bias, dest, merged
        swapped = call("encode", self.dtype, self._addresses, self._eps, offsets, *shape, *flags, *tensors, *where)
        left = len(plan.order) * leading if leading else plan.length(depth)
        packed = replace(packed, tokens=tensors[swapped][:left])
        if leading or not any(map(plan.merges, range(depth))):
            return packed
        views = plan.views(other_sizes if swapped else sizes, depth)
        return replace(packed, sizes=tuple(view for _, view in views), sources=_sources(plan, packed, dest))


def _sources(plan: Plan, packed: Packed, dest: Tensor) -> tuple[Tensor, ...] | None:
    """Where each input token is after all blocks, by what each of them did: ``dest (depth, T)``."""
    sources = packed.sources
    for index, row in enumerate(dest):
        if sources and plan.merges(index):
            sources = tuple(map(compose, sources, (view for _, view in plan.views(row, index))))
    return sources
