"""From pixels to normalised patches in a model's dtype: one matrix product short of the embedding.

A convolution over patches that do not overlap is a matrix product, which unlike a convolution needs
no plan for each number of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Patches, next to one another, of whose one channel a program of so many warps takes care."""

    patches: int
    warps: int


SHARE = Share(patches=16, warps=4)
MOST = 4096  # numbers that such a program holds


def choose_share(patch: tuple[int, int]) -> Share:
    """For patches of so many rows and columns: `SHARE`, or fewer of large ones."""
    return Share(
        max(1, min(SHARE.patches, MOST // triton.next_power_of_2(patch[0] * patch[1]))), SHARE.warps
    )


@triton.jit
def patches_kernel(
    pixels,
    scale,
    shift,
    out,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    PADDED: tl.constexpr,
    PATCHES: tl.constexpr,
):
    """One channel of ``PATCHES`` patches of ``TALL x WIDE`` in one row of them, in one image."""
    COLUMNS: tl.constexpr = WIDTH // WIDE
    BLOCKS: tl.constexpr = (COLUMNS + PATCHES - 1) // PATCHES
    block = tl.program_id(0) % BLOCKS
    channel = tl.program_id(0) // BLOCKS % CHANNELS
    strip = tl.program_id(0) // BLOCKS // CHANNELS  # a row of patches, counted over all images
    image = strip // (HEIGHT // TALL)
    row = strip % (HEIGHT // TALL)
    column = block * PATCHES + tl.arange(0, PATCHES)[:, None]
    inner = tl.arange(0, PADDED)[None, :]
    mask = (column < COLUMNS) & (inner < TALL * WIDE)
    source = (
        pixels + (image.to(tl.int64) * CHANNELS + channel) * (HEIGHT * WIDTH) + row * (TALL * WIDTH)
    )
    values = tl.load(
        source + inner // WIDE * WIDTH + column * WIDE + inner % WIDE, mask=mask, other=0
    )
    values = values.to(tl.float32) * tl.load(scale + channel) + tl.load(shift + channel)
    place = (
        (strip.to(tl.int64) * COLUMNS + column) * (CHANNELS * TALL * WIDE)
        + channel * (TALL * WIDE)
        + inner
    )
    tl.store(out + place, values.to(out.dtype.element_ty), mask=mask)


@cache
def constants(size: tuple[int, int, int], patch: tuple[int, int], share: Share) -> dict[str, Any]:
    """What the kernel is compiled for: the model's numbers. ``size`` is that of an image, ``(C, H, W)``."""
    return {
        "CHANNELS": size[0],
        "HEIGHT": size[1],
        "WIDTH": size[2],
        "TALL": patch[0],
        "WIDE": patch[1],
        "PADDED": triton.next_power_of_2(patch[0] * patch[1]),
        "PATCHES": share.patches,
    }


def launch_patches(
    pixels: Tensor,
    scale: Tensor,
    shift: Tensor,
    patch: tuple[int, int],
    dtype: torch.dtype,
    share: Share | None = None,
) -> Tensor:
    """As `patches`, without the operator around it, and with any share."""
    share = share or choose_share(patch)
    images, channels, height, width = pixels.shape
    out = _empty(pixels, patch, dtype)
    rows = height // patch[0]
    columns = width // patch[1]
    grid = (images * rows * channels * -(-columns // share.patches),)
    chosen = constants((channels, height, width), patch, share)
    patches_kernel[grid](pixels, scale, shift, out, **chosen, num_warps=share.warps)
    return out


def patches(
    pixels: Tensor, scale: Tensor, shift: Tensor, patch: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Normalised patches, ``(B * rows * columns, C * ph * pw)``, ordered as the weight of a convolution.

    So ``F.linear(patches, weight.flatten(1), bias)`` is the embedding by a convolution whose stride
    is its kernel. What is left at the lower and right edge is dropped, as there.

    Args:
        pixels: ``(B, C, H, W)``, contiguous, uint8 or floats.
        scale, shift: float32 ``(C,)``: a pixel becomes ``pixel * scale + shift``, in float32, then
            rounded.
        patch: ``(ph, pw)``.
    """
    return _operator(pixels, scale, shift, *patch, dtype)


def _empty(pixels: Tensor, patch: tuple[int, int], dtype: torch.dtype) -> Tensor:
    images, channels, height, width = pixels.shape
    rows = height // patch[0]
    columns = width // patch[1]
    return pixels.new_empty(images * rows * columns, channels * patch[0] * patch[1], dtype=dtype)


def _launch(
    pixels: Tensor, scale: Tensor, shift: Tensor, tall: int, wide: int, dtype: torch.dtype
) -> Tensor:
    return launch_patches(pixels, scale, shift, (tall, wide), dtype)


_operator = torch.library.custom_op(
    "tome::patches",
    _launch,
    mutates_args=(),
    schema=(
        "(Tensor pixels, Tensor scale, Tensor shift, int tall, int wide, ScalarType dtype) ->"
        " Tensor"
    ),
)


@_operator.register_fake
def _(
    pixels: Tensor, scale: Tensor, shift: Tensor, tall: int, wide: int, dtype: torch.dtype
) -> Tensor:
    return _empty(pixels, (tall, wide), dtype)
