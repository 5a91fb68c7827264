"""From pixels to normalised patches in a model's dtype: the input of the embedding's product.

An embedding by a convolution over patches that do not overlap is a matrix product. Unlike the
convolution, the product needs no plan for each number of images. Patches of video, tubelets, extend
over several frames of a clip, which lie below each other in one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class PatchGeometry(NamedTuple):
    """What a patch of an image is.

    Attributes:
        height, width: of a patch, in pixels.
        depth: frames of a patch.
        frames: frames of an image, a multiple of ``depth``; 1 unless it is a clip.
    """

    height: int
    width: int
    depth: int = 1
    frames: int = 1

    def counts(self, height: int, width: int) -> tuple[int, int, int]:
        """Return times, rows and columns of patches of an image of ``height x width`` pixels."""
        rows = height // self.frames // self.height
        return self.frames // self.depth, rows, width // self.width

    @property
    def values(self) -> int:
        """Values of one channel of a patch."""
        return self.depth * self.height * self.width


@dataclass(frozen=True)
class LaunchConfig:
    """One channel and frame of so many adjacent patches for one program, and its warps."""

    patches: int
    warps: int


DEFAULT_CONFIG = LaunchConfig(patches=16, warps=4)
MOST_PIXELS = 4096  # that one program holds in registers


def choose_config(geometry: PatchGeometry) -> LaunchConfig:
    """Return `DEFAULT_CONFIG`, or one of fewer patches if patches are large."""
    padded_pixels = triton.next_power_of_2(geometry.height * geometry.width)
    patches = min(DEFAULT_CONFIG.patches, MOST_PIXELS // padded_pixels)
    return LaunchConfig(max(patches, 1), DEFAULT_CONFIG.warps)


@triton.jit
def patches_kernel(
    pixels,
    scale,
    shift,
    out,
    CHANNELS: tl.constexpr,
    FRAMES: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    PATCH_DEPTH: tl.constexpr,
    PATCH_HEIGHT: tl.constexpr,
    PATCH_WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    PATCHES: tl.constexpr,
):
    """Normalise one channel and frame of ``PATCHES`` adjacent patches of one image.

    An image has ``CHANNELS x FRAMES x HEIGHT x WIDTH`` pixels, a patch ``PATCH_DEPTH x PATCH_HEIGHT
    x PATCH_WIDTH`` of each channel; its pixels in one frame fit into ``PADDED``.
    """
    TIMES: tl.constexpr = FRAMES // PATCH_DEPTH
    ROWS: tl.constexpr = HEIGHT // PATCH_HEIGHT
    COLUMNS: tl.constexpr = WIDTH // PATCH_WIDTH
    BLOCKS: tl.constexpr = (COLUMNS + PATCHES - 1) // PATCHES
    PARTS: tl.constexpr = CHANNELS * PATCH_DEPTH
    PART_PIXELS: tl.constexpr = PATCH_HEIGHT * PATCH_WIDTH
    # Which patches, and which part of each: one channel of one frame.
    program = tl.program_id(0)
    block = program % BLOCKS
    part = program // BLOCKS % PARTS
    row_of_batch = program // BLOCKS // PARTS  # rows of patches, counted over all images
    row = row_of_batch % ROWS
    time = row_of_batch // ROWS % TIMES
    image = row_of_batch // ROWS // TIMES
    channel = part // PATCH_DEPTH
    frame = time * PATCH_DEPTH + part % PATCH_DEPTH
    column = block * PATCHES + tl.arange(0, PATCHES)[:, None]
    pixel = tl.arange(0, PADDED)[None, :]
    mask = (column < COLUMNS) & (pixel < PART_PIXELS)
    # Load the pixels, (PATCHES, PADDED).
    plane = (image.to(tl.int64) * CHANNELS + channel) * FRAMES + frame
    source = pixels + plane * (HEIGHT * WIDTH) + row * (PATCH_HEIGHT * WIDTH)
    line = pixel // PATCH_WIDTH
    source += line * WIDTH + column * PATCH_WIDTH + pixel % PATCH_WIDTH
    values = tl.load(source, mask=mask, other=0)
    # Normalise, and write them in the order of a convolution's weight.
    values = values.to(tl.float32) * tl.load(scale + channel) + tl.load(shift + channel)
    patch = row_of_batch.to(tl.int64) * COLUMNS + column
    place = patch * (PARTS * PART_PIXELS) + part * PART_PIXELS + pixel
    tl.store(out + place, values.to(out.dtype.element_ty), mask=mask)


@cache
def constants(
    image_size: tuple[int, int, int],
    geometry: PatchGeometry,
    config: LaunchConfig,
) -> dict[str, Any]:
    """Return the constants that the kernel is compiled for.

    Args:
        image_size: ``(C, H, W)``.
    """
    channels, height, width = image_size
    return {
        "CHANNELS": channels,
        "FRAMES": geometry.frames,
        "HEIGHT": height // geometry.frames,
        "WIDTH": width,
        "PATCH_DEPTH": geometry.depth,
        "PATCH_HEIGHT": geometry.height,
        "PATCH_WIDTH": geometry.width,
        "PADDED": triton.next_power_of_2(geometry.height * geometry.width),
        "PATCHES": config.patches,
    }


def launch_patches(
    pixels: Tensor,
    scale: Tensor,
    shift: Tensor,
    geometry: PatchGeometry,
    dtype: torch.dtype,
    config: LaunchConfig | None = None,
) -> Tensor:
    """Do the same as `patches` without the operator around it, and with any configuration."""
    config = config or choose_config(geometry)
    images, channels, height, width = pixels.shape
    out = _empty(pixels, geometry, dtype)
    times, rows, columns = geometry.counts(height, width)
    blocks = -(-columns // config.patches)
    programs = images * times * rows * channels * geometry.depth * blocks
    chosen = constants((channels, height, width), geometry, config)
    patches_kernel[(programs,)](pixels, scale, shift, out, **chosen, num_warps=config.warps)
    return out


def patches(
    pixels: Tensor,
    scale: Tensor,
    shift: Tensor,
    geometry: PatchGeometry,
    dtype: torch.dtype,
) -> Tensor:
    """Normalised patches, ``(B * times * rows * columns, C * depth * height * width)``.

    They have the order of a convolution, so ``F.linear(patches, weight.flatten(1), bias)`` is the
    embedding by a convolution whose stride equals its kernel. As there, pixels at the lower and
    right edge that fill no patch are dropped.

    Args:
        pixels: ``(B, C, H, W)``, contiguous, uint8 or floats; the frames of a clip lie below each
            other.
        scale, shift: float32 ``(C,)``: a pixel becomes ``pixel * scale + shift``, computed in
            float32 and then rounded.
    """
    return _operator(pixels, scale, shift, list(geometry), dtype)


def _empty(pixels: Tensor, geometry: PatchGeometry, dtype: torch.dtype) -> Tensor:
    """The uninitialised result of `patches`."""
    images, channels, height, width = pixels.shape
    patch_count = images * math.prod(geometry.counts(height, width))
    return pixels.new_empty(patch_count, channels * geometry.values, dtype=dtype)


def _launch(
    pixels: Tensor,
    scale: Tensor,
    shift: Tensor,
    geometry: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    return launch_patches(pixels, scale, shift, PatchGeometry(*geometry), dtype)


_operator = torch.library.custom_op(
    "tome::patches",
    _launch,
    mutates_args=(),
    schema=(
        "(Tensor pixels, Tensor scale, Tensor shift, int[] geometry, ScalarType dtype) -> Tensor"
    ),
)


@_operator.register_fake
def _(
    pixels: Tensor,
    scale: Tensor,
    shift: Tensor,
    geometry: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    return _empty(pixels, PatchGeometry(*geometry), dtype)
