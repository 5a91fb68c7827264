"""GELU in place, by the normal distribution, in float32 inside."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tome_core.backends.cuda.share import SHARE, Share


@triton.jit(do_not_specialize=["units"])
def gelu_kernel(x, units, UNIT: tl.constexpr, NUMBERS: tl.constexpr):
    """On ``units * UNIT`` numbers: of such a product the compiler knows that no wide access can cross the end."""
    first = tl.program_id(0).to(tl.int64) * NUMBERS
    offsets = tl.arange(0, NUMBERS)
    mask = offsets < units.to(tl.int64) * UNIT - first
    values = tl.load(x + first + offsets, mask=mask, other=0.0).to(tl.float32)
    # What the normal distribution has beyond |x|: 7.1.26 of Abramowitz and Stegun, off by 1e-7 at
    # most. It takes two thirds of the instructions of the library's error function, for which
    # memory would have to wait.
    size = tl.abs(values)
    t = 1.0 / (1.0 + 0.2316418882 * size)
    tail = t * (
        0.127414796
        + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)))
    )
    values = tl.maximum(values, 0.0) - size * tail * tl.exp2(-0.7213475204 * size * size)
    tl.store(x + first + offsets, values.to(x.dtype.element_ty), mask=mask)


@cache
def constants(width: int, share: Share) -> dict[str, Any]:
    """What the kernel is compiled for: whether rows are so wide that accesses of 16 bytes fit."""
    return {"UNIT": 8 if width % 8 == 0 else 1, "NUMBERS": share.numbers}


def launch_gelu_(x: Tensor, share: Share = SHARE) -> Tensor:
    """As `gelu_`, without the operator around it, and with any share."""
    chosen = constants(x.shape[-1], share)
    numbers = x.numel()
    units = numbers // chosen["UNIT"]
    gelu_kernel[(-(-numbers // share.numbers),)](x, units, **chosen, num_warps=share.warps)
    return x


def gelu_(x: Tensor) -> Tensor:
    """GELU of ``x (..., D)``, contiguous, in place; right to 3e-7. Gives ``x``."""
    _operator(x)
    return x


def _launch(x: Tensor) -> None:
    launch_gelu_(x)


_operator = torch.library.custom_op(
    "tome::gelu_",
    _launch,
    mutates_args=("x",),
    schema="(Tensor(a!) x) -> ()",
)


@_operator.register_fake
def _(x: Tensor) -> None:
    return None
