"""From pixels to normalised patches in a model's dtype: the input of the embedding's product.

An embedding by a convolution over patches that do not overlap is a matrix product. Unlike the
convolution, the product needs no plan for each number of images.
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
class LaunchConfig:
    """One channel of so many adjacent patches for one program, and its warps."""

    patches: int
    warps: int


DEFAULT_CONFIG = LaunchConfig(patches=16, warps=4)
MOST_PIXELS = 4096  # that one program holds in registers


def choose_config(patch_size: tuple[int, int]) -> LaunchConfig:
    """Return `DEFAULT_CONFIG`, or one of fewer patches if patches are large."""
    height, width = patch_size
    padded_pixels = triton.next_power_of_2(height * width)
    patches = min(DEFAULT_CONFIG.patches, MOST_PIXELS // padded_pixels)
    return LaunchConfig(max(patches, 1), DEFAULT_CONFIG.warps)


@triton.jit
def patches_kernel(
    pixels,
    scale,
    shift,
    out,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PATCH_HEIGHT: tl.constexpr,
    PATCH_WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    PATCHES: tl.constexpr,
):
    """Normalise one channel of ``PATCHES`` adjacent patches of one image.

    An image has ``CHANNELS x HEIGHT x WIDTH`` pixels, a patch ``PATCH_HEIGHT x PATCH_WIDTH``; its
    pixels fit into ``PADDED``.
    """
    ROWS: tl.constexpr = HEIGHT // PATCH_HEIGHT
    COLUMNS: tl.constexpr = WIDTH // PATCH_WIDTH
    BLOCKS: tl.constexpr = (COLUMNS + PATCHES - 1) // PATCHES
    PATCH_PIXELS: tl.constexpr = PATCH_HEIGHT * PATCH_WIDTH
    # Which patches of which channel.
    program = tl.program_id(0)
    block = program % BLOCKS
    channel = program // BLOCKS % CHANNELS
    row_of_batch = program // BLOCKS // CHANNELS  # rows of patches, counted over all images
    image = row_of_batch // ROWS
    row = row_of_batch % ROWS
    column = block * PATCHES + tl.arange(0, PATCHES)[:, None]
    pixel = tl.arange(0, PADDED)[None, :]
    mask = (column < COLUMNS) & (pixel < PATCH_PIXELS)
    # Load the pixels, (PATCHES, PADDED).
    plane = image.to(tl.int64) * CHANNELS + channel
    source = pixels + plane * (HEIGHT * WIDTH) + row * (PATCH_HEIGHT * WIDTH)
    line = pixel // PATCH_WIDTH
    source += line * WIDTH + column * PATCH_WIDTH + pixel % PATCH_WIDTH
    values = tl.load(source, mask=mask, other=0)
    # Normalise, and write them in the order of a convolution's weight.
    values = values.to(tl.float32) * tl.load(scale + channel) + tl.load(shift + channel)
    patch = row_of_batch.to(tl.int64) * COLUMNS + column
    place = patch * (CHANNELS * PATCH_PIXELS) + channel * PATCH_PIXELS + pixel
    tl.store(out + place, values.to(out.dtype.element_ty), mask=mask)


@cache
def constants(
    image_size: tuple[int, int, int],
    patch_size: tuple[int, int],
    config: LaunchConfig,
) -> dict[str, Any]:
    """Return the constants that the kernel is compiled for.

    Args:
        image_size: ``(C, H, W)``.
        patch_size: ``(ph, pw)``.
    """
    channels, height, width = image_size
    patch_height, patch_width = patch_size
    return {
        "CHANNELS": channels,
        "HEIGHT": height,
        "WIDTH": width,
        "PATCH_HEIGHT": patch_height,
        "PATCH_WIDTH": patch_width,
        "PADDED": triton.next_power_of_2(patch_height * patch_width),
        "PATCHES": config.patches,
    }


def launch_patches(
    pixels: Tensor,
    scale: Tensor,
    shift: Tensor,
    patch_size: tuple[int, int],
    dtype: torch.dtype,
    config: LaunchConfig | None = None,
) -> Tensor:
    """Do the same as `patches` without the operator around it, and with any configuration."""
    config = config or choose_config(patch_size)
    images, channels, height, width = pixels.shape
    out = _empty(pixels, patch_size, dtype)
    patch_height, patch_width = patch_size
    rows = height // patch_height
    columns = width // patch_width
    blocks = -(-columns // config.patches)
    chosen = constants((channels, height, width), patch_size, config)
    patches_kernel[(images * rows * channels * blocks,)](
        pixels, scale, shift, out, **chosen, num_warps=config.warps
    )
    return out


def patches(
    pixels: Tensor,
    scale: Tensor,
    shift: Tensor,
    patch_size: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Normalised patches, ``(B * rows * columns, C * ph * pw)``, in the order of a convolution.

    So ``F.linear(patches, weight.flatten(1), bias)`` is the embedding by a convolution whose stride
    equals its kernel. As there, pixels at the lower and right edge that fill no patch are dropped.

    Args:
        pixels: ``(B, C, H, W)``, contiguous, uint8 or floats.
        scale, shift: float32 ``(C,)``: a pixel becomes ``pixel * scale + shift``, computed in
            float32 and then rounded.
        patch_size: ``(ph, pw)``.
    """
    patch_height, patch_width = patch_size
    return _operator(pixels, scale, shift, patch_height, patch_width, dtype)


def _empty(pixels: Tensor, patch_size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The uninitialised result of `patches`."""
    images, channels, height, width = pixels.shape
    patch_height, patch_width = patch_size
    rows = height // patch_height
    columns = width // patch_width
    values_of_patch = channels * patch_height * patch_width
    return pixels.new_empty(images * rows * columns, values_of_patch, dtype=dtype)


def _launch(
    pixels: Tensor,
    scale: Tensor,
    shift: Tensor,
    patch_height: int,
    patch_width: int,
    dtype: torch.dtype,
) -> Tensor:
    return launch_patches(pixels, scale, shift, (patch_height, patch_width), dtype)


_operator = torch.library.custom_op(
    "tome::patches",
    _launch,
    mutates_args=(),
    schema=(
        "(Tensor pixels, Tensor scale, Tensor shift, int patch_height, int patch_width,"
        " ScalarType dtype) -> Tensor"
    ),
)


@_operator.register_fake
def _(
    pixels: Tensor,
    scale: Tensor,
    shift: Tensor,
    patch_height: int,
    patch_width: int,
    dtype: torch.dtype,
) -> Tensor:
    return _empty(pixels, (patch_height, patch_width), dtype)
