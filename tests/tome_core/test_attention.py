from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tome_core import oracle
from tome_core.attention import Attend, explicit_attention, fused_attention

ALL = pytest.mark.parametrize("attend", [fused_attention, explicit_attention])


def _qkv(tokens: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, tokens, 4, generator=generator, dtype=torch.float64).to(dtype)
    return q, k, v


@ALL
@pytest.mark.parametrize("sized", [True, False])
def test_equals_the_oracle(attend: Attend, sized: bool) -> None:
    q, k, v = _qkv()
    sizes = (
        torch.tensor([[1, 1, 2, 9, 1, 30, 4], [5, 4, 3, 2, 1, 1, 1]], dtype=torch.float64)
        if sized
        else None
    )
    out = attend(q, k, v, sizes, 0.0)
    assert out.shape == (2, 7, 12)
    for image in range(2):
        for head in range(3):
            weights = sizes[image].tolist() if sizes is not None else [1] * 7
            queries, keys, values = (list(part[image, head].numpy()) for part in (q, k, v))
            expected = oracle.attend(queries, keys, values, weights)
            np.testing.assert_allclose(
                out[image, :, 4 * head : 4 * head + 4].numpy(), expected, atol=1e-12
            )


@ALL
def test_a_key_of_size_s_counts_as_s_equal_keys(attend: Attend) -> None:
    q, k, v = _qkv()
    repeats = torch.tensor([3, 1, 1, 5, 1, 2, 1])
    sized = attend(q, k, v, repeats.double().expand(2, -1), 0.0)
    repeated = attend(
        q, k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2), None, 0.0
    )
    torch.testing.assert_close(sized, repeated, rtol=1e-12, atol=1e-12)


@ALL
def test_sizes_of_one_change_nothing(attend: Attend) -> None:
    q, k, v = _qkv()
    ones = torch.ones(2, 7, dtype=torch.float64)
    torch.testing.assert_close(
        attend(q, k, v, ones, 0.0), attend(q, k, v, None, 0.0), rtol=1e-12, atol=1e-12
    )


@ALL
def test_float32_sizes_with_bfloat16_tokens(attend: Attend) -> None:
    q, k, v = _qkv()
    sizes = torch.tensor([[1.0, 1, 2, 9, 1, 30, 4]]).expand(2, -1)
    expected = attend(q, k, v, sizes.double(), 0.0)
    out = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), sizes, 0.0)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=0.05)


@ALL
def test_dropout_drops_weights_and_keeps_the_mean(attend: Attend) -> None:
    q, k, v = _qkv()
    torch.manual_seed(0)
    dropped = torch.stack([attend(q, k, v, None, 0.3) for _ in range(2000)])
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(dim=0), attend(q, k, v, None, 0.0), rtol=0, atol=0.1)


@ALL
def test_changes_no_argument(attend: Attend) -> None:
    q, k, v = _qkv()
    sizes = torch.full((2, 7), 2.0, dtype=torch.float64)
    copies = [part.clone() for part in (q, k, v, sizes)]
    attend(q, k, v, sizes, 0.0)
    assert all(torch.equal(now, then) for now, then in zip((q, k, v, sizes), copies, strict=True))
