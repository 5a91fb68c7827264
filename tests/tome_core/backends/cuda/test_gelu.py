"""GELU in place against PyTorch, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.tome_core.backends.cuda.device import DEVICE
from tome_core.backends.cuda.gelu import gelu_

LIMITS = {
    torch.float32: 1e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}  # of 1, or of the number where that is more


@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize("shape", [(1, 8), (3, 96), (7, 3), (5, 1024)])
def test_equals_pytorch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    values = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    guarded = torch.cat([values.flatten(), torch.full((4096,), 5.0)]).to(dtype).to(DEVICE)
    x = guarded[: values.numel()].view(shape)
    expected = F.gelu(x.double())
    assert gelu_(x) is x
    torch.testing.assert_close(x.double(), expected, rtol=LIMITS[dtype], atol=LIMITS[dtype])
    assert (guarded[values.numel() :] == 5).all()


def test_values_far_from_zero() -> None:
    x = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4, 6e4], device=DEVICE)
    expected = F.gelu(x.double()).float()
    torch.testing.assert_close(gelu_(x), expected, rtol=1e-6, atol=1e-6)
