"""Kernels as operators of PyTorch: on fake tensors, with what they change declared."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.tome_core.backends.cuda.device import DEVICE
from tome_core.backends.cuda.attention import attention, unpack
from tome_core.backends.cuda.gelu import gelu_
from tome_core.backends.cuda.norms import add_norm
from tome_core.backends.cuda.patches import PatchGeometry, patches


@pytest.mark.parametrize("with_sizes", [False, True])
def test_attention_is_a_valid_operator(with_sizes: bool) -> None:
    qkv = torch.randn(8, 3 * 2 * 32, device=DEVICE)
    starts = torch.tensor([0, 5, 8], dtype=torch.int32, device=DEVICE)
    sizes = torch.ones(8, device=DEVICE) if with_sizes else None
    torch.library.opcheck(torch.ops.tome.attention.default, (*unpack(qkv, 2), sizes, starts, 5))


def test_norms_are_valid_operators() -> None:
    x, branch, weight, bias = (
        torch.randn(*shape, device=DEVICE) for shape in ((3, 32), (3, 32), (32,), (32,))
    )
    torch.library.opcheck(torch.ops.tome.add_norm.default, (x, branch, weight, bias, 1e-6))
    torch.library.opcheck(torch.ops.tome.norm.default, (x, weight, bias, 1e-6))


def test_gelu_is_a_valid_operator() -> None:
    torch.library.opcheck(torch.ops.tome.gelu_.default, (torch.randn(3, 8, device=DEVICE),))


@pytest.mark.parametrize("geometry", [PatchGeometry(4, 4), PatchGeometry(4, 4, 2, 2)])
def test_patches_is_a_valid_operator(geometry: PatchGeometry) -> None:
    pixels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8, device=DEVICE)
    scale = torch.rand(3, device=DEVICE)
    shift = torch.rand(3, device=DEVICE)
    torch.library.opcheck(
        torch.ops.tome.patches.default, (pixels, scale, shift, list(geometry), torch.bfloat16)
    )


def test_operators_run_on_fake_tensors() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        pixels = torch.empty(2, 3, 32, 32, dtype=torch.uint8)
        scale = torch.empty(3)
        shift = torch.empty(3)
        x = patches(pixels, scale, shift, PatchGeometry(16, 16), torch.bfloat16)
        assert (x.shape, x.dtype, x.device.type) == ((8, 768), torch.bfloat16, "cuda")
        weight = torch.empty(768, dtype=x.dtype)
        bias = torch.empty(768, dtype=x.dtype)
        total, normed = add_norm(x, x, weight, bias, 1e-6)
        assert add_norm(total, None, weight, bias, 1e-6)[0] is total
        qkv = torch.cat([normed, normed, normed], dim=1)
        q, k, v = unpack(qkv, 12)
        starts = torch.empty(3, dtype=torch.int32)
        attended = attention(q, k, v, torch.empty(8), starts, 4)
        assert (attended.shape, attended.dtype, attended.device.type) == (x.shape, x.dtype, "cuda")
        assert gelu_(attended) is attended
