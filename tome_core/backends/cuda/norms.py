"""Layer norm, and the residual sum before it, in one pass over the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDEST = 8192  # numbers of a token that one program holds in registers


@dataclass(frozen=True)
class Rows:
    """How tokens are shared out: so many of them to a program of so many warps."""

    rows: int
    warps: int


def choose_rows(width: int) -> Rows:
    """For tokens of so many numbers: about 16 of them for each thread."""
    return Rows(1, min(max(triton.next_power_of_2(width) // 512, 1), 8))


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
    """``ROWS`` tokens: the sum with their branch, if there is one, and its norm."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, PADDED)[None, :]
    real = columns < WIDTH
    mask = (rows < tokens) & real
    places = rows * WIDTH + columns
    values = tl.load(x + places, mask=mask, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        summed = (values + tl.load(branch + places, mask=mask, other=0.0).to(tl.float32)).to(
            total.dtype.element_ty
        )
        tl.store(total + places, summed, mask=mask)
        values = summed.to(tl.float32)  # the norm reads what later layers will
    mean = tl.sum(values, 1) / WIDTH
    centred = tl.where(real, values - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / WIDTH
    scaled = centred * tl.rsqrt(variance + EPS)[:, None]
    scaled = scaled * tl.load(weight + columns, mask=real, other=0.0).to(tl.float32)
    scaled = scaled + tl.load(shift + columns, mask=real, other=0.0).to(tl.float32)
    tl.store(normed + places, scaled.to(normed.dtype.element_ty), mask=mask)


@cache
def constants(width: int, eps: float, has_branch: bool, rows: Rows) -> dict[str, Any]:
    """What the kernel is compiled for: the model's numbers."""
    padded = triton.next_power_of_2(width)
    return {
        "EPS": eps,
        "WIDTH": width,
        "PADDED": padded,
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
    """As `add_norm`, without the operator around it, and with any rows."""
    tokens, width = x.shape
    rows = rows or choose_rows(width)
    total = x if branch is None else torch.empty_like(x)
    normed = torch.empty_like(x)
    add_norm_kernel[(-(-tokens // rows.rows),)](
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
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``x + branch``, rounded as PyTorch does, and the layer norm of that, which is computed in float32.

    Args:
        x, branch: ``(T, D)``, contiguous, D at most `WIDEST`. Without ``branch`` the sum is ``x``
            itself, no copy.
        weight, bias: ``(D,)``.
    """
    if branch is None:
        return x, _norm(x, weight, bias, eps)
    return _add_norm(x, branch, weight, bias, eps)


def _launch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return launch_add_norm(x, None, weight, bias, eps)[1]


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
