"""Attention over offsets against its definition in float64, over random batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core.backends.cuda.device import DEVICE
from tome_core.backends.cuda.attention import attention, has_dense_heads, unpack

LIMITS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = list(LIMITS)


def make(
    counts: list[int],
    heads: int,
    width: int,
    dtype: torch.dtype,
    seed: int,
    largest: int = 50,
) -> tuple[Tensor, Tensor, Tensor]:
    """``qkv``, ``sizes`` and ``starts`` of images of so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(sum(counts), 3 * heads * width, generator=generator).to(dtype)
    sizes = torch.randint(1, largest + 1, (sum(counts),), generator=generator).float()
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    return qkv.to(DEVICE), sizes.to(DEVICE), starts.to(DEVICE)


def attend(qkv: Tensor, sizes: Tensor | None, starts: Tensor, longest: int, heads: int) -> Tensor:
    q, k, v = unpack(qkv, heads)
    return attention(q, k, v, sizes, starts, longest)


def definition(qkv: Tensor, sizes: Tensor | None, starts: Tensor, heads: int) -> Tensor:
    """By the definition, image by image, in float64."""
    width = qkv.shape[1] // (3 * heads)
    parts = []
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        q, k, v = qkv[first:last].double().unflatten(1, (3, heads, width)).permute(1, 2, 0, 3)
        logits = q @ k.mT / width**0.5
        if sizes is not None:
            logits = logits + sizes[first:last].double().log()
        parts.append((logits.softmax(dim=-1) @ v).transpose(0, 1).flatten(1))
    return torch.cat(parts)


def check(
    counts: list[int],
    heads: int,
    width: int,
    dtype: torch.dtype,
    seed: int,
    with_sizes: bool,
) -> None:
    qkv, sizes, starts = make(counts, heads, width, dtype, seed)
    of_keys = sizes if with_sizes else None
    result = attend(qkv, of_keys, starts, max(counts), heads)
    assert result.dtype == dtype
    torch.testing.assert_close(
        result.double(), definition(qkv, of_keys, starts, heads), rtol=0, atol=LIMITS[dtype]
    )


@settings(max_examples=10)
@given(
    st.lists(st.integers(1, 150), min_size=1, max_size=3),
    st.integers(1, 2),
    st.sampled_from([32, 64]),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.integers(0, 99),
)
def test_random_batches_equal_the_definition(
    counts: list[int],
    heads: int,
    width: int,
    dtype: torch.dtype,
    with_sizes: bool,
    seed: int,
) -> None:
    check(counts, heads, width, dtype, seed, with_sizes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [32, 48, 64, 80, 128])
def test_every_head_width_equals_the_definition(width: int, dtype: torch.dtype) -> None:
    check([1, 37, 70], 1, width, dtype, 0, True)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 197])
def test_lengths_around_the_edges_of_tiles(count: int) -> None:
    check([count], 1, 32, torch.float16, count, True)


def test_logits_far_from_zero_keep_their_softmax() -> None:
    qkv, sizes, starts = make([70], 1, 32, torch.float32, 0)
    qkv[:, 32:64] = qkv[:, :32].mean(dim=0) - 30 * qkv[:, :32].sign().mean(dim=0, keepdim=True)
    qkv[:, :32] = 40 + qkv[:, :32]
    qkv[:, 32:64] -= 5  # every logit is near -1000
    result = attend(qkv, sizes, starts, 70, 1)
    torch.testing.assert_close(
        result.double(), definition(qkv, sizes, starts, 1), rtol=0, atol=1e-3
    )


def test_a_token_of_size_n_weighs_as_n_tokens() -> None:
    qkv, _, starts = make([20], 1, 32, torch.float32, 0)
    sizes = torch.ones(20, device=DEVICE)
    sizes[7] = 3
    twice = torch.cat([qkv, qkv[7:8], qkv[7:8]])
    expected = attend(
        twice, None, starts + torch.tensor([0, 2], device=DEVICE, dtype=torch.int32), 22, 1
    )
    result = attend(qkv, sizes, starts, 20, 1)
    torch.testing.assert_close(result, expected[:20], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_result_is_independent_of_the_other_images(dtype: torch.dtype) -> None:
    counts = [20, 150, 1, 64]
    qkv, sizes, starts = make(counts, 2, 32, dtype, 3)
    together = attend(qkv, sizes, starts, max(counts), 2)
    for first, last, count in zip(starts[:-1].tolist(), starts[1:].tolist(), counts, strict=True):
        own = starts.new_tensor([0, count])
        alone = attend(qkv[first:last], sizes[first:last], own, count, 2)
        assert torch.equal(alone, together[first:last])


def test_longest_may_be_an_upper_bound() -> None:
    qkv, sizes, starts = make([40, 20], 1, 32, torch.float16, 0)
    tight, loose = (attend(qkv, sizes, starts, longest, 1) for longest in (40, 600))
    assert torch.equal(tight, loose)


@pytest.mark.parametrize("dtype", DTYPES)
def test_result_is_independent_of_the_memory_layout(dtype: torch.dtype) -> None:
    """Packed, each by itself, in another order, and with room between tokens."""
    qkv, sizes, starts = make([40, 21], 2, 32, dtype, 5)
    q, k, v = unpack(qkv, 2)
    expected = attention(q, k, v, sizes, starts, 40)
    room = torch.full((61, 100), torch.nan, dtype=dtype, device=DEVICE)
    room[:, :64] = q.flatten(1)
    there = room[:, :64].unflatten(1, (2, 32))
    for queries in (q.contiguous(), there, unpack(torch.cat([room[:, :64]] * 3, dim=1), 2)[2]):
        assert has_dense_heads(queries)
        assert torch.equal(attention(queries, k.contiguous(), v, sizes, starts, 40), expected)
    assert not has_dense_heads(q.transpose(1, 2))
    assert not has_dense_heads(q.transpose(0, 1).contiguous().transpose(0, 1))
