"""All blocks of a plain Vision Transformer in one call of the kernels: what calls from Python cost is saved.

`run_block` with the strategy `Kernels` is its reference, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tome_core.backends.cpu.kernels import LANES
from tome_core.backends.cpu.layers import KernelLayerNorm
from tome_core.backends.cpu.library import call
from tome_core.backends.cpu.linears import KernelLinear, KernelMlp
from tome_core.backends.cpu.strategy import Kernels
from tome_core.backends.cpu.workspace import WORKSPACE
from tome_core.merge import compose
from tome_core.ragged.packed import Merging, Packed
from tome_core.ragged.plan import Plan


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
    def dtype(self) -> torch.dtype:
        """Of weights and tokens."""
        return self.qkv.packed.panels.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width of a token, heads, width of the MLP."""
        return self.qkv.in_features, self.heads, self.mlp.fc1.out_features

    @property
    def fits(self) -> bool:
        """Whether the kernels can compute it: one dtype, heads of a width they know, together as wide as a token."""
        dim, heads, hidden = self.shape
        linears = self.qkv, self.proj, self.mlp.fc1, self.mlp.fc2
        shapes = [(linear.in_features, linear.out_features) for linear in linears]
        norms = all(norm.weight.shape == (dim,) for norm in (self.norm1, self.norm2))
        one_dtype = len({linear.packed.panels.dtype for linear in linears}) == 1
        same = shapes == [(dim, 3 * dim), (dim, dim), (dim, hidden), (hidden, dim)]
        return same and norms and one_dtype and dim % (heads * LANES) == 0

    @property
    def weights(self) -> list[Tensor]:
        """In the order of Block in encoder.cpp."""
        qkv, proj, fc1, fc2 = (
            linear.packed for linear in (self.qkv, self.proj, self.mlp.fc1, self.mlp.fc2)
        )
        first = [self.norm1.weight, self.norm1.bias, qkv.panels, qkv.bias, proj.panels, proj.bias]
        return [
            *first,
            self.norm2.weight,
            self.norm2.bias,
            fc1.panels,
            fc1.bias,
            fc2.panels,
            fc2.bias,
        ]


def fit_together(layers: Sequence[BlockLayers]) -> bool:
    """Whether the kernels can compute all of these blocks in one call."""
    alike = len({(block.shape, block.dtype) for block in layers}) == 1
    return alike and all(block.fits for block in layers)


class Encoder:
    """The blocks of a model, made of ``layers``, which are all of one shape and dtype.

    Raises:
        ValueError: they are not, or do not fit.
    """

    def __init__(self, layers: Sequence[BlockLayers]) -> None:
        if not fit_together(layers):
            raise ValueError("the blocks are not all of one shape and dtype that the kernels know")
        self._layers = tuple(layers)
        self.dtype = layers[0].dtype
        self.dim, self.heads, self.hidden = layers[0].shape
        self._weights = [
            block.weights for block in layers
        ]  # kept alive: the kernels are given their addresses
        self._addresses = _fields([weight for weights in self._weights for weight in weights])
        eps = [[block.norm1.eps, block.norm2.eps] for block in layers]
        self._eps = torch.tensor(eps, dtype=torch.float32, device="cpu")

    def __deepcopy__(self, memo: dict[int, object]) -> Encoder:
        return self  # nothing can change it

    def __reduce__(self) -> tuple[Any, ...]:
        return Encoder, (self._layers,)  # addresses are of no use in another process

    def takes(self, merging: Merging, packed: Packed) -> bool:
        """Whether it would do what ``merging`` says with ``packed``."""
        tokens = packed.tokens
        plain = (
            packed.positions is None and tokens.dtype == self.dtype and tokens.device.type == "cpu"
        )
        return plain and type(merging.strategy) is Kernels and merging.is_papers

    def __call__(self, merging: Merging, plan: Plan, packed: Packed, leading: int | None) -> Packed:
        """Run all blocks; ``packed.tokens (T, D)`` are used up. For ``leading`` see `tome_core.block.run_block`."""
        tokens = packed.tokens.contiguous()
        depth = len(self._weights)
        offsets = plan.offsets(tokens)
        rows = len(tokens)
        widths = self.dim, self.dim, max(3 * self.dim, self.hidden)
        buffers = [tokens, *(WORKSPACE.empty(rows, width, self.dtype) for width in widths)]
        sizes, other_sizes, bias = tokens.new_empty(3, rows, dtype=torch.float32)
        traced = packed.sources is not None
        dest = tokens.new_empty(depth if traced else 1, rows, dtype=torch.int64)
        merged = tokens.new_empty(rows, dtype=torch.bool)
        shape = depth, offsets.shape[1] - 1, self.dim, self.heads, self.hidden
        flags = merging.prefix, leading or 0, merging.prop_attn, rows if traced else 0
        where = (
            self._addresses,
            self._eps,
            offsets,
            *buffers,
            sizes,
            other_sizes,
            bias,
            dest,
            merged,
        )
        swapped = call("encode", self.dtype, _fields([*shape, *flags, *where]))
        left = len(plan.order) * leading if leading else plan.length(depth)
        packed = replace(packed, tokens=buffers[swapped][:left])
        if leading or not any(map(plan.merges, range(depth))):
            return packed
        views = plan.views(other_sizes if swapped else sizes, depth)
        return replace(
            packed, sizes=tuple(view for _, view in views), sources=_sources(plan, packed, dest)
        )


def _fields(values: Sequence[Tensor | int]) -> Tensor:
    """A structure of the kernels': each field a number of 8 bytes, or the address of a tensor's data."""
    numbers = [value.data_ptr() if isinstance(value, Tensor) else int(value) for value in values]
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


def _sources(plan: Plan, packed: Packed, dest: Tensor) -> tuple[Tensor, ...] | None:
    """Where each input token is after all blocks, by what each of them did: ``dest (depth, T)``."""
    sources = packed.sources
    for index, row in enumerate(dest):
        if sources and plan.merges(index):
            sources = tuple(map(compose, sources, (view for _, view in plan.views(row, index))))
    return sources
