"""Layer norm, and the residual sum before it, in one pass over the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 8192  # channels of a token that one program holds in registers
_CHANNELS_PER_WARP = 512  # 16 for each thread
_MOST_WARPS = 8


@dataclass(frozen=True)
class Rows:
    """The tokens of one program, and its warps."""

    rows: int
    warps: int


def choose_rows(width: int) -> Rows:
    """Return the configuration for tokens of ``width`` channels."""
    warps = triton.next_power_of_2(width) // _CHANNELS_PER_WARP
    return Rows(rows=1, warps=min(max(warps, 1), _MOST_WARPS))


@triton.jit(do_not_specialize=["tokens"])
def add_norm_kernel(
    x,
    branch,
    weight,
    shift,
    total,
    normed,
    tokens,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
):
    """Add the branch to ``ROWS`` tokens, if there is one, and normalise them."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, PADDED)[None, :]
    is_channel = columns < WIDTH
    mask = (rows < tokens) & is_channel
    offsets = rows * WIDTH + columns
    values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    # The residual sum. The norm reads it as it is rounded, as later layers do.
    if HAS_BRANCH:
        added = tl.load(branch + offsets, mask=mask, other=0.0).to(tl.float32)
        summed = (values + added).to(total.dtype.element_ty)
        tl.store(total + offsets, summed, mask=mask)
        values = summed.to(tl.float32)
    # The layer norm.
    mean = tl.sum(values, 1) / WIDTH
    centred = tl.where(is_channel, values - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / WIDTH
    scaled = centred * tl.rsqrt(variance + EPS)[:, None]
    weights = tl.load(weight + columns, mask=is_channel, other=0.0).to(tl.float32)
    scaled = scaled * weights
    shifts = tl.load(shift + columns, mask=is_channel, other=0.0).to(tl.float32)
    scaled = scaled + shifts
    tl.store(normed + offsets, scaled.to(normed.dtype.element_ty), mask=mask)


@cache
def constants(width: int, eps: float, has_branch: bool, rows: Rows) -> dict[str, Any]:
    """Return the constants that the kernel is compiled for; they depend on the model alone."""
    return {
        "EPS": eps,
        "WIDTH": width,
        "PADDED": triton.next_power_of_2(width),
        "ROWS": rows.rows,
        "HAS_BRANCH": has_branch,
    }


def launch_add_norm(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    rows: Rows | None = None,
) -> tuple[Tensor, Tensor]:
    """Do the same as `add_norm` without the operator around it, and with any rows."""
    tokens, width = x.shape
    rows = rows or choose_rows(width)
    total = x if branch is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    programs = -(-tokens // rows.rows)
    add_norm_kernel[(programs,)](
        x,
        x if branch is None else branch,  # not read without one
        weight,
        bias,
        total,
        normed,
        tokens,
        **constants(width, eps, branch is not None, rows),
        num_warps=rows.warps,
    )
    return total, normed


def add_norm(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return ``x + branch``, rounded as PyTorch does, and its layer norm (arXiv 1607.06450).

    The norm is computed in float32.

    Args:
        x, branch: ``(T, D)``, contiguous, D at most `WIDEST`. Without ``branch`` the sum is ``x``
            itself, not a copy.
        weight, bias: ``(D,)``.
    """
    if branch is None:
        return x, _norm(x, weight, bias, eps)
    return _add_norm(x, branch, weight, bias, eps)


def _launch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    _, normed = launch_add_norm(x, None, weight, bias, eps)
    return normed


_add_norm = torch.library.custom_op(
    "tome::add_norm",
    launch_add_norm,
    mutates_args=(),
    schema="(Tensor x, Tensor branch, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
)
_norm = torch.library.custom_op(
    "tome::norm",
    _launch_norm,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor",
)


@_add_norm.register_fake
def _(x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)
