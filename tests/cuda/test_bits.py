"""The kernels give the same bits every time, whichever images share the batch."""

from __future__ import annotations

import pytest
import torch

import tome_core
from tests.cuda.networks import MIXED, images, network

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["class-token", "vit-s"])
def test_the_same_batch_again_and_in_reverse_order_gives_the_same_bits(
    name: str,
    dtype: torch.dtype,
    gpu: torch.device,
) -> None:
    fast = tome_core.optimize(network(name, gpu, torch.float32), dtype)
    batch = images(name, len(MIXED)).to(gpu, dtype)
    r = [*MIXED[1:], 0]
    with torch.inference_mode():
        first = fast(batch, r=r)
        again = fast(batch, r=r)
        reverse = fast(batch.flip(0), r=r[::-1]).flip(0)
    assert torch.equal(first, again)
    assert torch.equal(first, reverse)
