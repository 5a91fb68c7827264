"""Packed patch embedding compared with the convolution that it replaces."""

from __future__ import annotations

import pytest
import torch

from tests.tome_core.backends.cpu.helpers import (
    KERNEL_DTYPES,
    TOLERANCE,
    needs_avx512,
    needs_bfloat16,
    random,
)
from tome_core.backends.cpu.layers import KernelLayerNorm, pack_patches

pytestmark = needs_avx512


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@torch.no_grad()
def test_packed_patches_equal_the_convolution(dtype: torch.dtype) -> None:
    convolution = torch.nn.Conv2d(3, 24, (4, 2), (4, 2)).to(dtype)
    images = random(2, 3, 17, 13, seed=1, dtype=dtype)
    patches = pack_patches(convolution)
    assert patches is not None
    expected = convolution(images)
    torch.testing.assert_close(patches(images), expected, rtol=2e-2, atol=TOLERANCE[dtype])


@needs_bfloat16
def test_weights_of_a_layer_norm_are_in_float32() -> None:
    norm = torch.nn.LayerNorm(24).bfloat16()
    layer = KernelLayerNorm(norm)
    assert layer.weight.dtype == layer.bias.dtype == torch.float32
    x = random(2, 3, 24, seed=1, dtype=torch.bfloat16)
    torch.testing.assert_close(layer(x), norm(x), rtol=2e-2, atol=2e-2)
