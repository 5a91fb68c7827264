"""Residual, merging and the next layer norm in one pass (paper, section 3: "Tracking token size").

Or merging alone, where other layers come before or after it.

A program averages the tokens that share one destination. It adds them in the order that the
matching gives, without atomics: the result is the same bit for bit in every run, and does not
depend on the other images of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 4


@triton.jit(do_not_specialize=["sizes", "segment_starts"])
def merge_norm_kernel(
    x,
    branch,
    sizes,
    order,
    segment_starts,
    weight,
    bias,
    tokens,
    normed,
    new_sizes,
    eps,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SIZES: tl.constexpr,
    FUSED: tl.constexpr,
    KEEPS_LENGTH: tl.constexpr,
):
    """Compute one token after merging, of ``DIM`` channels, which fit into ``BLOCK``.

    If ``FUSED``, with the residual before and the norm after it. Otherwise ``branch``, ``weight``,
    ``bias`` and ``normed`` are not used. If ``KEEPS_LENGTH``, as long as the tokens are on average.
    """
    destination = tl.program_id(0)
    begin = tl.load(segment_starts + destination)
    end = tl.load(segment_starts + destination + 1)
    if begin == end:  # past the last token, where there is room for more
        return
    channels = tl.arange(0, BLOCK)
    inside = channels < DIM
    # The sum of the tokens that share the destination, weighted by size.
    total = tl.zeros((BLOCK,), tl.float32)
    size = tl.zeros((1,), tl.float32)
    lengths = tl.zeros((1,), tl.float32)
    value = total
    for order_index in range(begin, end):
        token = tl.load(order + order_index)
        row = token.to(tl.int64) * DIM + channels
        value = tl.load(x + row, mask=inside, other=0.0).to(tl.float32)
        if FUSED:
            value += tl.load(branch + row, mask=inside, other=0.0).to(tl.float32)
            # Rounded as the residual sum is when it is written to memory.
            value = value.to(tokens.dtype.element_ty).to(tl.float32)
        if HAS_SIZES:
            size_of_token = tl.load(sizes + token)
            total += value * size_of_token
            size += size_of_token
        else:
            size_of_token = 1.0
            total += value
            size += 1.0
        if KEEPS_LENGTH:
            lengths += tl.sqrt_rn(tl.sum(value * value, axis=0)) * size_of_token
    # Their weighted mean, and its size.
    mean = tl.div_rn(total, tl.broadcast_to(size, (BLOCK,)))
    if KEEPS_LENGTH:
        # 1e-12 is the eps of `F.normalize`, which `norm_preserving_mean` uses.
        length = tl.maximum(tl.sqrt_rn(tl.sum(mean * mean, axis=0)), 1e-12)
        scaled = mean / length * tl.broadcast_to(tl.div_rn(lengths, size), (BLOCK,))
        # The bits of a token that is alone stay as they are.
        mean = tl.where(end - begin > 1, scaled, value)
    merged = mean.to(tokens.dtype.element_ty)
    row = destination.to(tl.int64) * DIM + channels
    tl.store(tokens + row, merged, mask=inside)
    tl.store(new_sizes + destination + tl.arange(0, 1), size)
    if FUSED:
        # The layer norm of the merged token.
        value = merged.to(tl.float32)
        centred = tl.where(inside, value - tl.sum(value, axis=0) / DIM, 0.0)
        variance = tl.sum(centred * centred, axis=0) / DIM
        scale = tl.rsqrt(variance + eps)
        weights = tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
        biases = tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
        scaled = centred * scale * weights + biases
        tl.store(normed + row, scaled.to(normed.dtype.element_ty), mask=inside)


def constants(
    dim: int, has_sizes: bool, fused: bool, keeps_length: bool = False
) -> dict[str, object]:
    """Return the constants that the kernel is compiled for."""
    return {
        "DIM": dim,
        "BLOCK": triton.next_power_of_2(dim),
        "HAS_SIZES": has_sizes,
        "FUSED": fused,
        "KEEPS_LENGTH": keeps_length,
    }


class _Fused(NamedTuple):
    """The branch that is added before merging, and the norm that follows it."""

    branch: Tensor
    weight: Tensor
    bias: Tensor
    eps: float


def launch_merge_norm(
    x: Tensor,
    branch: Tensor,
    sizes: Tensor | None,
    order: Tensor,
    segment_starts: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    keeps_length: bool = False,
    *,
    warps: int = WARPS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the same as `merge_norm` without the operator around it, and with any number of warps."""
    fused = _Fused(branch, weight, bias, eps)
    return _launch(x, sizes, order, segment_starts, fused, keeps_length, warps)


def launch_merge(
    x: Tensor,
    sizes: Tensor | None,
    order: Tensor,
    segment_starts: Tensor,
    keeps_length: bool = False,
) -> tuple[Tensor, Tensor]:
    """Do the same as `merge` without the operator around it."""
    tokens, _, new_sizes = _launch(x, sizes, order, segment_starts, None, keeps_length, WARPS)
    return tokens, new_sizes


def _launch(
    x: Tensor,
    sizes: Tensor | None,
    order: Tensor,
    segment_starts: Tensor,
    fused: _Fused | None,
    keeps_length: bool,
    warps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the merged tokens, the same after the norm, and their sizes.

    Args:
        fused: without it the second result is the first.
    """
    new_tokens = len(segment_starts) - 1
    dim = x.shape[1]
    tokens = x.new_empty(new_tokens, dim)
    normed = tokens if fused is None else torch.empty_like(tokens)
    new_sizes = x.new_empty(new_tokens, dtype=torch.float32)
    is_fused = fused is not None
    if fused is None:
        fused = _Fused(branch=x, weight=x, bias=x, eps=0.0)  # not read
    merge_norm_kernel[(new_tokens,)](
        x,
        fused.branch,
        segment_starts if sizes is None else sizes,  # not read without sizes
        order,
        segment_starts,
        fused.weight,
        fused.bias,
        tokens,
        normed,
        new_sizes,
        fused.eps,
        **constants(dim, sizes is not None, is_fused, keeps_length),
        num_warps=warps,
    )
    return tokens, normed, new_sizes


def merge(
    x: Tensor,
    sizes: Tensor | None,
    order: Tensor,
    segment_starts: Tensor,
    keeps_length: bool = False,
) -> tuple[Tensor, Tensor]:
    """Merge ``x`` without the other steps of `merge_norm`, whose arguments it takes.

    Returns:
        The merged tokens ``(T', D)`` and their sizes, float32 ``(T',)``.
    """
    return _merge(x, sizes, order, segment_starts, keeps_length)


def merge_norm(
    x: Tensor,
    branch: Tensor,
    sizes: Tensor | None,
    order: Tensor,
    segment_starts: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    keeps_length: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge ``x + branch`` as `tome_core.merge.merge` does, then layer norm (arXiv 1607.06450).

    Sums are in float32. Intermediate results are rounded as if each step wrote them to memory.

    Args:
        x, branch: ``(T, D)``, contiguous, in float32, bfloat16 or float16.
        sizes: of each token, float32 ``(T,)``; None if all are 1.
        order, segment_starts: see `tome_core.backends.cuda.matching.PackedMatching`.
        weight, bias: of the norm, ``(D,)``.
        keeps_length: whether merging is that of `tome_core.merge.norm_preserving_mean` instead.

    Returns:
        Merged tokens ``(T', D)``, the same after the norm, and sizes ``(T',)``; undefined for
        destinations without tokens.
    """
    return _operator(x, branch, sizes, order, segment_starts, weight, bias, eps, keeps_length)


_operator = torch.library.custom_op(
    "tome::merge_norm",
    launch_merge_norm,
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor branch, Tensor? sizes, Tensor order, Tensor segment_starts,"
        " Tensor weight, Tensor bias, float eps, bool keeps_length=False)"
        " -> (Tensor, Tensor, Tensor)"
    ),
)


@_operator.register_fake
def _(
    x: Tensor,
    branch: Tensor,
    sizes: Tensor | None,
    order: Tensor,
    segment_starts: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    keeps_length: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    new_tokens = segment_starts.shape[0] - 1
    tokens = x.new_empty(new_tokens, x.shape[1])
    new_sizes = x.new_empty(new_tokens, dtype=torch.float32)
    return tokens, torch.empty_like(tokens), new_sizes


_merge = torch.library.custom_op(
    "tome::merge",
    launch_merge,
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor? sizes, Tensor order, Tensor segment_starts, bool keeps_length=False)"
        " -> (Tensor, Tensor)"
    ),
)


@_merge.register_fake
def _(
    x: Tensor,
    sizes: Tensor | None,
    order: Tensor,
    segment_starts: Tensor,
    keeps_length: bool = False,
) -> tuple[Tensor, Tensor]:
    new_tokens = segment_starts.shape[0] - 1
    tokens = x.new_empty(new_tokens, x.shape[1])
    new_sizes = x.new_empty(new_tokens, dtype=torch.float32)
    return tokens, new_sizes
