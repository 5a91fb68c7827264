"""Equal tokens count as one token of their number, since every attention knows the sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tome_core.models import randomise
from tome_core.networks.attentive_pooler import AttentivePooler
from tome_core.pooling import attention_pool

WIDTH = 16
COUNTS = torch.tensor([1, 3, 2, 1, 5])


def make_pooler(fused: bool = True, depth: int = 2) -> AttentivePooler:
    pooler = AttentivePooler(WIDTH, num_heads=2, depth=depth, mlp_ratio=2.0)
    randomise(pooler)
    modules: Iterable[Any] = pooler.modules()
    for module in modules:
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return pooler.double().eval().requires_grad_(False)


def make_tokens(batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, len(COUNTS), WIDTH, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_equal_tokens_count_as_one_of_their_number(fused: bool, depth: int) -> None:
    pooler = make_pooler(fused, depth)
    tokens = make_tokens()
    repeated = tokens.repeat_interleave(COUNTS, dim=1)
    expected = attention_pool(pooler, repeated, None)
    sizes = COUNTS.double().expand(2, -1)
    pooled = attention_pool(pooler, tokens, sizes)
    torch.testing.assert_close(pooled, expected, rtol=1e-12, atol=1e-12)
    without_sizes = attention_pool(pooler, tokens, None)
    assert (without_sizes - expected).abs().max() > 1e-3


def test_sizes_of_one_and_the_order_of_tokens_change_nothing() -> None:
    pooler = make_pooler()
    tokens = make_tokens()
    expected = pooler(tokens)
    sizes = torch.ones(2, len(COUNTS), dtype=torch.float64)
    torch.testing.assert_close(attention_pool(pooler, tokens, sizes), expected)
    torch.testing.assert_close(pooler(tokens.flip(1)), expected)
    torch.testing.assert_close(pooler(tokens[1:]), expected[1:])
