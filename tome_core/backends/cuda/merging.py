"""Residual, merging and the next layer norm in one pass over the tokens (paper, section 3: "Tracking token size").

Or merging alone, where something else comes before or after.

A program makes one token of those that share its destination, and adds them up in the order that
the matching gives: no atomics, so bits depend neither on the run nor on who shares the batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 4


@triton.jit(do_not_specialize=["sizes", "begins"])
def merge_norm_kernel(
    x,
    branch,
    sizes,
    order,
    begins,
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
):
    """One token after merging: ``DIM`` channels, which fit into ``BLOCK``.

    With what comes before and after if ``FUSED``; else ``branch``, ``weight``, ``bias`` and
    ``normed`` are not touched.
    """
    place = tl.program_id(0)
    begin = tl.load(begins + place)
    end = tl.load(begins + place + 1)
    if begin == end:  # past the last token, where there is room for more
        return
    channels = tl.arange(0, BLOCK)
    inside = channels < DIM
    total = tl.zeros((BLOCK,), tl.float32)
    size = tl.zeros((1,), tl.float32)
    for source in range(begin, end):
        token = tl.load(order + source)
        row = token.to(tl.int64) * DIM + channels
        value = tl.load(x + row, mask=inside, other=0.0).to(tl.float32)
        if FUSED:
            value += tl.load(branch + row, mask=inside, other=0.0).to(tl.float32)
            # As the sum would be, if it were written to memory.
            value = value.to(tokens.dtype.element_ty).to(tl.float32)
        if HAS_SIZES:
            size_of_token = tl.load(sizes + token)
            total += value * size_of_token
            size += size_of_token
        else:
            total += value
            size += 1.0
    merged = tl.div_rn(total, tl.broadcast_to(size, (BLOCK,))).to(tokens.dtype.element_ty)
    row = place.to(tl.int64) * DIM + channels
    tl.store(tokens + row, merged, mask=inside)
    tl.store(new_sizes + place + tl.arange(0, 1), size)
    if FUSED:
        value = merged.to(tl.float32)
        centred = tl.where(inside, value - tl.sum(value, axis=0) / DIM, 0.0)
        scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / DIM + eps)
        weights = tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
        biases = tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
        tl.store(
            normed + row,
            (centred * scale * weights + biases).to(normed.dtype.element_ty),
            mask=inside,
        )


def constants(dim: int, has_sizes: bool, fused: bool) -> dict[str, object]:
    """What the kernel is compiled for."""
    return {
        "DIM": dim,
        "BLOCK": triton.next_power_of_2(dim),
        "HAS_SIZES": has_sizes,
        "FUSED": fused,
    }


def launch_merge_norm(
    x: Tensor,
    branch: Tensor,
    sizes: Tensor | None,
    order: Tensor,
    begins: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    warps: int = WARPS,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `merge_norm`, without the operator around it, and with any number of warps."""
    return _run(x, sizes, order, begins, (branch, weight, bias, eps), warps)


def launch_merge(
    x: Tensor, sizes: Tensor | None, order: Tensor, begins: Tensor
) -> tuple[Tensor, Tensor]:
    """As `merge`, without the operator around it."""
    tokens, _, new_sizes = _run(x, sizes, order, begins, None, WARPS)
    return tokens, new_sizes


def _run(
    x: Tensor,
    sizes: Tensor | None,
    order: Tensor,
    begins: Tensor,
    fused: tuple[Tensor, Tensor, Tensor, float] | None,
    warps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merged tokens, the same after the norm, and their sizes.

    Args:
        fused: the branch before, and the norm after; without them the tokens are given in the place
            of normed ones.
    """
    left = len(begins) - 1
    dim = x.shape[1]
    tokens = x.new_empty(left, dim)
    normed = tokens if fused is None else torch.empty_like(tokens)
    new_sizes = x.new_empty(left, dtype=torch.float32)
    branch, weight, bias, eps = fused or (x, x, x, 0.0)
    merge_norm_kernel[(left,)](
        x,
        branch,
        begins if sizes is None else sizes,  # not read without sizes
        order,
        begins,
        weight,
        bias,
        tokens,
        normed,
        new_sizes,
        eps,
        **constants(dim, sizes is not None, fused is not None),
        num_warps=warps,
    )
    return tokens, normed, new_sizes


def merge(x: Tensor, sizes: Tensor | None, order: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
    """Merge ``x`` as `tome_core.merge.merge` does: the merged tokens ``(T', D)`` and their sizes, as `merge_norm`."""
    return _merge(x, sizes, order, begins)


def merge_norm(
    x: Tensor,
    branch: Tensor,
    sizes: Tensor | None,
    order: Tensor,
    begins: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge ``x + branch`` as `tome_core.merge.merge` does, then layer norm (arXiv 1607.06450).

    Sums are of float32; what would be written to memory between the steps is rounded as if it were.

    Args:
        x, branch: ``(T, D)``, contiguous, in float32, bfloat16 or float16.
        sizes: of each token, float32 ``(T,)``; None if all are 1.
        order, begins: int32 ``(T,)`` and ``(T' + 1,)``; see
            `tome_core.backends.cuda.matching.Matched`.
        weight, bias: of the norm, ``(D,)``.

    Returns:
        The merged tokens ``(T', D)``, the same after the norm, and their sizes, float32 ``(T',)``.
        Of places that nothing goes to, anything.
    """
    return _operator(x, branch, sizes, order, begins, weight, bias, eps)


_operator = torch.library.custom_op(
    "tome::merge_norm",
    launch_merge_norm,
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor branch, Tensor? sizes, Tensor order, Tensor begins, Tensor weight,"
        " Tensor bias, float eps) -> (Tensor, Tensor, Tensor)"
    ),
)


@_operator.register_fake
def _(
    x: Tensor,
    branch: Tensor,
    sizes: Tensor | None,
    order: Tensor,
    begins: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    left = begins.shape[0] - 1
    return (
        x.new_empty(left, x.shape[1]),
        x.new_empty(left, x.shape[1]),
        x.new_empty(left, dtype=torch.float32),
    )


_merge = torch.library.custom_op(
    "tome::merge",
    launch_merge,
    mutates_args=(),
    schema="(Tensor x, Tensor? sizes, Tensor order, Tensor begins) -> (Tensor, Tensor)",
)


@_merge.register_fake
def _(x: Tensor, sizes: Tensor | None, order: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
    left = begins.shape[0] - 1
    return x.new_empty(left, x.shape[1]), x.new_empty(left, dtype=torch.float32)
