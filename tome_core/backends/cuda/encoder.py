"""All blocks of a plain Vision Transformer by the kernels of this package: seven launches a block, nine if it merges.

Homogeneous and mixed batches go the same way, since every kernel reads from the device where an
image begins and ends. `tome_core.block.run_block` is its reference, block by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.backends.cuda.attention import DTYPES, attention, launch_attention, unpack
from tome_core.backends.cuda.extents import Extents
from tome_core.backends.cuda.gelu import gelu_, launch_gelu_
from tome_core.backends.cuda.matching import launch_match, match
from tome_core.backends.cuda.merging import launch_merge_norm, merge_norm
from tome_core.backends.cuda.norms import add_norm, launch_add_norm
from tome_core.ragged.packed import Merging, Packed
from tome_core.ragged.plan import Plan


class Linear(NamedTuple):
    """A linear layer: ``weight (out, in)`` and ``bias (out,)``."""

    weight: Tensor
    bias: Tensor | None


class Norm(NamedTuple):
    """A layer norm over ``(D,)``."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True)
class BlockWeights:
    """A block that begins both branches with a norm, has GELU (by erf) in its MLP, and nothing that is not here."""

    norm1: Norm
    qkv: Linear
    proj: Linear
    norm2: Norm
    fc1: Linear
    fc2: Linear
    heads: int

    @property
    def tensors(self) -> list[Tensor]:
        """All weights."""
        linears = self.qkv, self.proj, self.fc1, self.fc2
        norms = [tensor for norm in (self.norm1, self.norm2) for tensor in norm[:2]]
        return [*norms, *(tensor for linear in linears for tensor in linear if tensor is not None)]

    @property
    def fits(self) -> bool:
        """Whether the kernels can compute it: one dtype that they know, heads that are together as wide as a token."""
        dim = self.norm1.weight.shape[0]
        shapes = [
            tuple(linear.weight.shape) for linear in (self.qkv, self.proj, self.fc1, self.fc2)
        ]
        hidden = shapes[2][0]
        same = (
            shapes == [(3 * dim, dim), (dim, dim), (hidden, dim), (dim, hidden)]
            and dim % self.heads == 0
        )
        dtypes = {tensor.dtype for tensor in self.tensors}
        return same and len(dtypes) == 1 and dtypes <= set(DTYPES)


class _Kernels(NamedTuple):
    attention: Any
    match: Any
    merge_norm: Any
    add_norm: Any
    gelu_: Any


_LAUNCHERS = _Kernels(
    launch_attention, launch_match, launch_merge_norm, launch_add_norm, launch_gelu_
)
_OPERATORS = _Kernels(attention, match, merge_norm, add_norm, gelu_)


class TritonEncoder:
    """The blocks of a model (see `tome_core.model.Encoder`); ``weights`` are all of one dtype, on one device.

    Raises:
        ValueError: the blocks are not of one dtype, or do not fit.
    """

    reads_starts = True  # of a `BoundedPlan`, on the device

    def __init__(self, weights: Sequence[BlockWeights]) -> None:
        if not fit_together(weights):
            raise ValueError("the blocks are not all of one width and dtype that the kernels know")
        self.weights = tuple(weights)
        # A graph reads what the plan that it was recorded with keeps, for as long as there is a
        # graph.
        self._recorded: list[Plan] = []
        self._side: torch.cuda.Stream | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> TritonEncoder:
        return self  # nothing can change it

    def __reduce__(self) -> tuple[Any, ...]:
        return TritonEncoder, (self.weights,)

    def takes(self, merging: Merging, packed: Packed) -> bool:
        """Whether it would do what ``merging`` says with ``packed``: no traces, no positions, no gradients."""
        tokens = packed.tokens
        weight = self.weights[0].qkv.weight
        plain = packed.sources is None and packed.positions is None
        learns = torch.is_grad_enabled() and (tokens.requires_grad or weight.requires_grad)
        here = tokens.device == weight.device and tokens.dtype == weight.dtype
        return (
            merging.is_papers
            and plain
            and here
            and not learns
            and not torch.is_autocast_enabled(tokens.device.type)
        )

    def __call__(self, merging: Merging, plan: Plan, packed: Packed, leading: int | None) -> Packed:
        """Run all blocks; ``packed.tokens (T, D)`` are used up. For ``leading`` see `tome_core.block.run_block`.

        Before a CUDA graph is recorded, the same plan must have run once: its extents are copied
        from the host then.
        """
        extents = Extents.of(plan, packed.tokens)
        kernels = _LAUNCHERS if type(packed.tokens) is Tensor else _OPERATORS
        side = self._prepare(plan) if kernels is _LAUNCHERS and packed.tokens.is_cuda else None
        tokens = packed.tokens.contiguous()
        sizes = packed.flat_sizes(plan, 0)
        first = self.weights[0].norm1
        last = len(self.weights) - 1
        tokens, normed = kernels.add_norm(tokens, None, *first)
        for index, block in enumerate(self.weights):
            q, k, v = unpack(F.linear(normed, *block.qkv), block.heads)
            starts = extents.starts[index]
            longest = extents.longest[index]
            sizes_of_keys = sizes if merging.prop_attn else None
            merges = extents.merges[index] and (leading is None or index < last)
            if merges:
                after = extents.starts[index + 1]
                left = extents.lengths[index + 1]
                with _beside(side):
                    order, begins, _ = kernels.match(
                        k, starts, after, extents.longest[0], left, merging.prefix
                    )
            attended = kernels.attention(q, k, v, sizes_of_keys, starts, longest)
            if leading is not None and index == last:
                attended, tokens = (
                    plan.leading(rows, index, leading).contiguous() for rows in (attended, tokens)
                )
            branch = F.linear(attended, *block.proj)
            if merges:
                if side is not None:
                    torch.cuda.current_stream().wait_stream(side)
                tokens, normed, sizes = kernels.merge_norm(
                    tokens, branch, sizes, order, begins, *block.norm2
                )
            else:
                tokens, normed = kernels.add_norm(tokens, branch, *block.norm2)
            branch = F.linear(_hidden(normed, block.fc1, kernels), *block.fc2)
            if index < last:
                tokens, normed = kernels.add_norm(tokens, branch, *self.weights[index + 1].norm1)
        tokens = branch.add_(tokens)
        if sizes is None or leading is not None:
            return replace(packed, tokens=tokens)
        views = plan.views(sizes, len(self.weights))
        return replace(packed, tokens=tokens, sizes=tuple(view for _, view in views))

    def _prepare(self, plan: Plan) -> torch.cuda.Stream | None:
        """Keep what a graph will need, if one is recorded now; give it a second stream then.

        Matching reads keys alone, so it may run beside attention. Of small batches neither fills
        the device; eagerly, forking streams would cost the host more than that gains.
        """
        if not torch.cuda.is_current_stream_capturing():
            self._side = self._side or torch.cuda.Stream()
            return None
        self._recorded.append(plan)
        return self._side


@contextmanager
def _beside(side: torch.cuda.Stream | None) -> Iterator[None]:
    """What is launched in here waits for what was launched before on this stream, but not the other way."""
    if side is None:
        yield
        return
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield


def _hidden(normed: Tensor, fc1: Linear, kernels: _Kernels) -> Tensor:
    """GELU of ``fc1``, ``(T, D)`` -> ``(T, hidden)``: in 16 bits within the product, in its form with tanh.

    That is off by 5e-4 at most, where rounding to 16 bits is by more.
    """
    weight, bias = fc1
    if weight.dtype == torch.float32 or bias is None:
        hidden = F.linear(normed, weight, bias)
        kernels.gelu_(hidden)
        return hidden
    return torch._addmm_activation(bias, normed, weight.t(), use_gelu=True)


def fit_together(weights: Sequence[BlockWeights]) -> bool:
    """Whether the kernels can compute all of these blocks, one after the other."""
    alike = {
        (block.norm1.weight.shape, block.qkv.weight.dtype, block.qkv.weight.device)
        for block in weights
    }
    return len(alike) == 1 and all(block.fits for block in weights)
