"""Packed linear layers compared with the plain layers that they replace."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.tome_core.backends.cpu.helpers import (
    CPU_FLAGS,
    KERNEL_DTYPES,
    TOLERANCE,
    needs_avx512,
    needs_bfloat16,
    random,
)
from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.library import load_library
from tome_core.backends.cpu.linears import (
    KernelLinear,
    OneDnnLinear,
    PackedLinear,
    onednn_works,
    pack_linear,
)

pytestmark = needs_avx512


@pytest.mark.parametrize("layer", [KernelLinear, OneDnnLinear])
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@torch.no_grad()
def test_packed_layers_equal_the_plain_layer(layer: type[PackedLinear], dtype: torch.dtype) -> None:
    assert onednn_works(dtype)
    linear = torch.nn.Linear(40, 24).to(dtype)
    x = random(3, 5, 40, seed=0, dtype=dtype)
    expected = linear(x)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(layer(linear)(x), expected, rtol=2e-2, atol=tolerance)
    with_gelu = layer(linear, gelu=True)
    torch.testing.assert_close(with_gelu(x), F.gelu(expected), rtol=2e-2, atol=tolerance)


@torch.no_grad()
def test_a_copy_shares_the_packed_weights() -> None:
    layer = KernelLinear(torch.nn.Linear(40, 24))
    copied = copy.deepcopy(layer)
    assert copied.packed is layer.packed
    assert copied.bias is not layer.bias
    x = random(3, 40, seed=0, dtype=torch.float32)
    assert torch.equal(copied(x), layer(x))


@needs_bfloat16
@pytest.mark.parametrize(("in_features", "layer"), [(40, KernelLinear), (41, OneDnnLinear)])
def test_bfloat16_layers_with_an_odd_number_of_inputs_use_onednn(
    in_features: int,
    layer: type[PackedLinear],
) -> None:
    has_amx = "amx_bf16" in CPU_FLAGS
    if has_amx:
        layer = OneDnnLinear
    library = load_library(torch.bfloat16)
    assert library is not None
    assert bool(library.tome_has_amx()) == has_amx
    assert kernels.multiplies_fastest(torch.empty(3, in_features))
    linear = torch.nn.Linear(in_features, 3).bfloat16()
    assert type(pack_linear(linear)) is layer
