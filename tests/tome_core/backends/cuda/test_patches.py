"""Patches against PyTorch's convolution, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tome_core.backends.cuda.device import DEVICE
from tome_core.backends.cuda.patches import PatchGeometry, patches

LIMITS = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def make(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """``pixels``, ``scale`` and ``shift`` to numbers between -2 and 3."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    scale = (torch.rand(shape[1], generator=generator) + 3) / 255
    shift = -2 * torch.rand(shape[1], generator=generator)
    return pixels.to(DEVICE), scale.to(DEVICE), shift.to(DEVICE)


def exact(pixels: Tensor, scale: Tensor, shift: Tensor, patch: tuple[int, int]) -> Tensor:
    """By unfolding, in float64."""
    normalised = pixels.double() * scale.double()[:, None, None] + shift.double()[:, None, None]
    return F.unfold(normalised, patch, stride=patch).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((2, 3, 32, 48), (16, 16)),
        ((1, 3, 28, 42), (14, 14)),
        ((3, 1, 17, 35), (8, 4)),  # leaves out what is no whole patch
        ((1, 2, 8, 160), (8, 8)),  # more patches in a row than in a program
        ((1, 3, 32, 160), (32, 32)),  # fewer to a program
    ],
)
def test_patches_equal_those_of_a_convolution(
    shape: tuple[int, int, int, int],
    patch: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    pixels, scale, shift = make(shape)
    result = patches(pixels, scale, shift, PatchGeometry(*patch), dtype)
    assert result.dtype == dtype
    torch.testing.assert_close(
        result.double(), exact(pixels, scale, shift, patch), rtol=0, atol=LIMITS[dtype]
    )


@pytest.mark.parametrize("dtype", list(LIMITS))
def test_pixels_may_be_floats(dtype: torch.dtype) -> None:
    pixels, scale, shift = make((2, 3, 32, 32))
    floats = pixels.to(dtype)
    result = patches(floats, scale, shift, PatchGeometry(16, 16), dtype)
    torch.testing.assert_close(
        result, patches(pixels, scale, shift, PatchGeometry(16, 16), dtype), rtol=0, atol=0
    )


def test_the_product_with_patches_is_the_embedding() -> None:
    pixels, scale, shift = make((2, 3, 32, 48))
    convolution = torch.nn.Conv2d(
        3, 10, 16, stride=16, device=DEVICE, dtype=torch.float64
    ).requires_grad_(False)
    rows = patches(pixels, scale, shift, PatchGeometry(16, 16), torch.float32).double()
    result = F.linear(rows, convolution.weight.flatten(1), convolution.bias)
    normalised = pixels.double() * scale.double()[:, None, None] + shift.double()[:, None, None]
    expected = convolution(normalised).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize(
    ("images", "channels", "frames", "depth", "height", "width", "patch"),
    [
        (2, 3, 4, 2, 32, 48, (16, 16)),
        (3, 1, 3, 1, 8, 8, (8, 4)),
        (1, 2, 6, 3, 12, 160, (4, 8)),
        (2, 3, 2, 2, 17, 18, (8, 8)),  # leaves out what is no whole patch of a frame
    ],
)
def test_patches_of_clips_equal_those_of_a_convolution(
    images: int,
    channels: int,
    frames: int,
    depth: int,
    height: int,
    width: int,
    patch: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    pixels, scale, shift = make((images, channels, frames * height, width))
    result = patches(pixels, scale, shift, PatchGeometry(*patch, depth, frames), dtype)
    values = channels * depth * patch[0] * patch[1]
    # A convolution whose outputs are its inputs.
    kernel = torch.eye(values, dtype=torch.float64, device=DEVICE)
    kernel = kernel.view(values, channels, depth, *patch)
    normalised = pixels.double() * scale.double()[:, None, None] + shift.double()[:, None, None]
    clips = normalised.view(images, channels, frames, height, width)
    maps = F.conv3d(clips, kernel, stride=(depth, *patch))
    expected = maps.flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=LIMITS[dtype])
