"""All blocks of a plain Vision Transformer by the kernels of this package.

A block takes seven launches, nine if it merges. Homogeneous and mixed batches run the same code,
because every kernel reads from the device where an image begins and ends. The reference is
`tome_core.block.run_block`, block by block.
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
from tome_core.backends.cuda.matching import PackedMatching, launch_match, match
from tome_core.backends.cuda.merging import launch_merge_norm, merge_norm
from tome_core.backends.cuda.norms import add_norm, launch_add_norm
from tome_core.backends.cuda.pairs import launch_match_pairs, match_pairs
from tome_core.backends.cuda.rules import match_by_rule
from tome_core.merging import Merging
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import Plan
from tome_core.rules import RuleName


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
    """The weights of a pre-norm block with GELU (by erf) in its MLP, and without other layers."""

    norm1: Norm
    qkv: Linear
    proj: Linear
    norm2: Norm
    fc1: Linear
    fc2: Linear
    heads: int

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers in the order in which they run."""
        return self.qkv, self.proj, self.fc1, self.fc2

    @property
    def tensors(self) -> list[Tensor]:
        """All weights."""
        tensors = []
        for norm in (self.norm1, self.norm2):
            tensors += [norm.weight, norm.bias]
        for linear in self.linears:
            tensors.append(linear.weight)
            if linear.bias is not None:
                tensors.append(linear.bias)
        return tensors

    @property
    def is_supported(self) -> bool:
        """Whether the kernels can compute the block."""
        dim = self.norm1.weight.shape[0]
        hidden = self.fc1.weight.shape[0]
        expected_shapes = [(3 * dim, dim), (dim, dim), (hidden, dim), (dim, hidden)]
        shapes = [tuple(linear.weight.shape) for linear in self.linears]
        if shapes != expected_shapes or dim % self.heads:
            return False
        dtypes = {tensor.dtype for tensor in self.tensors}
        return len(dtypes) == 1 and dtypes <= set(DTYPES)


def are_supported(blocks: Sequence[BlockWeights]) -> bool:
    """Return whether the kernels can compute all of ``blocks``, one after the other."""
    variants = set()
    for block in blocks:
        weight = block.qkv.weight
        variants.add((block.norm1.weight.shape, weight.dtype, weight.device))
    return len(variants) == 1 and all(block.is_supported for block in blocks)


class _Kernels(NamedTuple):
    attention: Any
    match: Any
    match_pairs: Any
    merge_norm: Any
    add_norm: Any
    gelu_: Any


_LAUNCHERS = _Kernels(
    attention=launch_attention,
    match=launch_match,
    match_pairs=launch_match_pairs,
    merge_norm=launch_merge_norm,
    add_norm=launch_add_norm,
    gelu_=launch_gelu_,
)
_OPERATORS = _Kernels(
    attention=attention,
    match=match,
    match_pairs=match_pairs,
    merge_norm=merge_norm,
    add_norm=add_norm,
    gelu_=gelu_,
)


@dataclass
class _State:
    """What travels from one step of the network to the next.

    Attributes:
        tokens: ``(T, D)``.
        normed: the tokens after the norm that follows, ``(T, D)``.
        sizes: ``(T,)``; None while all are 1.
    """

    tokens: Tensor
    normed: Tensor
    sizes: Tensor | None


class TritonEncoder:
    """The blocks of a model (see `tome_core.block.Encoder`), all of one dtype, on one device.

    Raises:
        ValueError: the blocks differ in width or dtype, or the kernels cannot compute them.
    """

    reads_starts = True  # of a `BoundedPlan`, on the device

    def __init__(self, weights: Sequence[BlockWeights]) -> None:
        if not are_supported(weights):
            raise ValueError("the blocks are not all of one width and dtype that the kernels know")
        self.weights = tuple(weights)
        # A CUDA graph reads tensors that its plan holds, so these plans live as long as the graphs.
        self._recorded: list[Plan] = []
        self._side_stream: torch.cuda.Stream | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> TritonEncoder:
        return self  # immutable

    def __reduce__(self) -> tuple[Any, ...]:
        return TritonEncoder, (self.weights,)

    def supports(self, context: BlockContext) -> bool:
        """Return whether the encoder can run the blocks from ``context`` on.

        It computes no gradients, and tracks neither sources nor positions. Calls that record
        residuals track sources.
        """
        packed = context.packed
        tokens = packed.tokens
        weight = self.weights[0].qkv.weight
        if context.merging.rule is None:
            return False
        if packed.positions is not None or packed.sources is not None:
            return False
        if tokens.device != weight.device or tokens.dtype != weight.dtype:
            return False
        if torch.is_grad_enabled() and (tokens.requires_grad or weight.requires_grad):
            return False
        return not torch.is_autocast_enabled(tokens.device.type)

    def __call__(self, context: BlockContext, leading: int | None) -> Packed:
        """Run all blocks; the tokens ``(T, D)`` of ``context`` are overwritten.

        For ``leading`` see `tome_core.block.run_block`. The same plan must have run once before a
        CUDA graph is recorded: its extents are copied from the host then.
        """
        packed = context.packed
        run = self._start(context)
        kernels = run.kernels
        depth = len(self.weights)
        tokens, normed = kernels.add_norm(packed.tokens.contiguous(), None, *self.weights[0].norm1)
        state = _State(tokens, normed, context.sizes())
        for index, block in enumerate(self.weights):
            is_last = index == depth - 1
            run.attend_and_merge(state, block, index, leading if is_last else None)
            branch = F.linear(_hidden(state.normed, block.fc1, kernels), *block.fc2)
            if is_last:
                tokens = branch.add_(state.tokens)
            else:
                next_norm = self.weights[index + 1].norm1
                state.tokens, state.normed = kernels.add_norm(state.tokens, branch, *next_norm)
        if state.sizes is None or leading is not None:
            return replace(packed, tokens=tokens)
        views = context.plan.views(state.sizes, depth)
        return replace(packed, tokens=tokens, sizes=tuple(view for _, view in views))

    def _start(self, context: BlockContext) -> _Run:
        merging = context.merging
        rule = merging.rule
        assert rule is not None  # `supports` has checked it
        plan = context.plan
        tokens = context.packed.tokens
        extents = Extents.of(plan, tokens)
        if type(tokens) is not Tensor:
            # Fake tensors need operators; for others, launchers cost the host less.
            return _Run(merging, rule, plan, extents, _OPERATORS, side_stream=None)
        side_stream = self._prepare_streams(plan) if tokens.is_cuda else None
        return _Run(merging, rule, plan, extents, _LAUNCHERS, side_stream)

    def _prepare_streams(self, plan: Plan) -> torch.cuda.Stream | None:
        """Return a second stream if a CUDA graph is recorded now, and keep ``plan`` for the graph.

        Matching reads keys alone, so it can run beside attention; for small batches neither fills
        the device. Without a graph, forking streams would cost the host more than that gains.
        """
        if not torch.cuda.is_current_stream_capturing():
            self._side_stream = self._side_stream or torch.cuda.Stream()
            return None
        self._recorded.append(plan)
        return self._side_stream


@dataclass(frozen=True)
class _Run:
    """One pass over all blocks."""

    merging: Merging
    rule: RuleName
    plan: Plan
    extents: Extents
    kernels: _Kernels
    side_stream: torch.cuda.Stream | None

    def attend_and_merge(
        self,
        state: _State,
        block: BlockWeights,
        index: int,
        leading: int | None,
    ) -> None:
        """Run the first branch of ``block``, merging and the norm of the second; update ``state``.

        With ``leading``, go on with so many tokens of each image, and merge nothing.
        """
        kernels = self.kernels
        extents = self.extents
        q, k, v = unpack(F.linear(state.normed, *block.qkv), block.heads)
        matched = None
        if extents.merges[index] and leading is None:
            matched = self._match(k, index)
        sizes = state.sizes if self.merging.prop_attn else None
        attended = kernels.attention(q, k, v, sizes, extents.starts[index], extents.longest[index])
        tokens = state.tokens
        if leading is not None:
            attended = self.plan.leading(attended, index, leading).contiguous()
            tokens = self.plan.leading(tokens, index, leading).contiguous()
        branch = F.linear(attended, *block.proj)
        if matched is None:
            state.tokens, state.normed = kernels.add_norm(tokens, branch, *block.norm2)
            return
        if self.side_stream is not None:
            torch.cuda.current_stream().wait_stream(self.side_stream)
        state.tokens, state.normed, state.sizes = kernels.merge_norm(
            tokens,
            branch,
            state.sizes,
            matched.order,
            matched.segment_starts,
            *block.norm2,
            self.rule != "paper",
        )

    def _match(self, keys: Tensor, index: int) -> PackedMatching:
        """Match the tokens of block ``index`` by ``keys (T, H, d)``, on the side stream if any."""
        with _on_side_stream(self.side_stream):
            return match_by_rule(
                self.kernels, self.rule, keys, self.extents, index, self.merging.prefix
            )


@contextmanager
def _on_side_stream(side_stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Launch what follows on ``side_stream``, after all earlier work of the current stream.

    Later work of the current stream does not wait for it.
    """
    if side_stream is None:
        yield
        return
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        yield


def _hidden(normed: Tensor, fc1: Linear, kernels: _Kernels) -> Tensor:
    """GELU of ``fc1``, ``(T, D)`` -> ``(T, hidden)``.

    In 16 bits, GELU is part of the matrix product, in its form with tanh. That form has an error of
    at most 5e-4, less than the rounding to 16 bits.
    """
    weight, bias = fc1
    if weight.dtype == torch.float32 or bias is None:
        hidden = F.linear(normed, weight, bias)
        kernels.gelu_(hidden)
        return hidden
    return torch._addmm_activation(bias, normed, weight.t(), use_gelu=True)
