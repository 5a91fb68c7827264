"""The CPU kernels compared with the plain functions of the core, which other tests check."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core.backends.cpu.helpers import (
    KERNEL_DTYPES,
    TOLERANCE,
    needs_avx512,
    random,
    thread_count,
)
from tome_core.attention import explicit_attention
from tome_core.backends.cpu import kernels
from tome_core.merging import RULES
from tome_core.metric import BlockTensors
from tome_core.rules import RULE_NAMES, RuleName

pytestmark = needs_avx512

dtypes = st.sampled_from(KERNEL_DTYPES)
lengths = st.lists(st.integers(1, 90), min_size=1, max_size=4)
heads = st.integers(1, 4)
widths = st.sampled_from([16, 32, 48, 64, 80, 128])


def offsets_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def test_kernels_are_available_on_this_processor() -> None:
    assert kernels.available()


@given(lengths, heads, widths, dtypes, st.booleans(), st.booleans(), st.integers(0, 99))
def test_attention_equals_the_explicit_formula(
    counts: list[int],
    h: int,
    d: int,
    dtype: torch.dtype,
    has_sizes: bool,
    packed_layout: bool,
    seed: int,
) -> None:
    tokens = sum(counts)
    qkv = random(tokens, 3, h, d, seed=seed, dtype=dtype)
    sizes = torch.randint(1, 9, (tokens,)).float() if has_sizes else None
    q, k, v = qkv.unbind(1) if packed_layout else (x.contiguous() for x in qkv.unbind(1))
    result = kernels.attention(q, k, v, sizes, offsets_of(counts))
    assert result.dtype == dtype
    assert result.shape == (tokens, h * d)
    start = 0
    for count in counts:
        part = slice(start, start := start + count)
        queries, keys, values = (x[part].double().transpose(0, 1)[None] for x in (q, k, v))
        own = None if sizes is None else sizes[part].double()[None]
        expected = explicit_attention(queries, keys, values, own, 0.0)[0]
        torch.testing.assert_close(result[part].double(), expected, rtol=0, atol=TOLERANCE[dtype])


@given(
    st.lists(st.tuples(st.integers(4, 90), st.integers(0, 60)), min_size=1, max_size=4),
    st.integers(0, 4),
    heads,
    widths,
    st.integers(1, 50),
    dtypes,
    st.booleans(),
    st.sampled_from(RULE_NAMES),
    st.integers(0, 99),
)
def test_merging_equals_the_rule(
    images: list[tuple[int, int]],
    prefix: int,
    h: int,
    d: int,
    dim: int,
    dtype: torch.dtype,
    has_sizes: bool,
    name: RuleName,
    seed: int,
) -> None:
    counts = [count for count, _ in images]
    rule = RULES[name]
    matcher = rule.matcher
    left = [matcher.remaining(count, r, prefix) if r else count for count, r in images]
    tokens = sum(counts)
    x = random(tokens, dim, seed=seed, dtype=dtype)
    keys = random(tokens, h, d, seed=seed + 1, dtype=dtype)
    sizes = torch.randint(1, 9, (tokens,)).float() if has_sizes else None
    offsets = offsets_of(counts)
    after = offsets_of(left)
    result, result_sizes, dest, merged = kernels.merge(x, keys, sizes, offsets, after, prefix, name)
    metric = rule.metric(BlockTensors(x, x, keys, keys, keys))
    for i, (count, r) in enumerate(images):
        part = slice(offsets[i], offsets[i + 1])
        out = slice(after[i], after[i + 1])
        before = torch.ones(1, count) if sizes is None else sizes[None, part]
        if left[i] == count:
            assert torch.equal(result[out], x[part])
            assert torch.equal(result_sizes[None, out], before)
            assert torch.equal(dest[part], torch.arange(count))
            assert not merged[part].any()
            continue
        matching = matcher(metric[None, part], r, prefix)
        expected, expected_sizes = rule.combine(x[None, part], before, matching, left[i])
        assert torch.equal(dest[part], matching.dest[0])
        assert torch.equal(merged[part], matching.merged[0])
        assert torch.equal(result_sizes[out], expected_sizes[0])
        torch.testing.assert_close(result[out], expected[0], rtol=TOLERANCE[dtype] / 2, atol=1e-6)


@pytest.mark.parametrize("name", RULE_NAMES)
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_threads_that_share_an_image_give_the_same_bits(dtype: torch.dtype, name: RuleName) -> None:
    """A single image, which is large."""
    offsets = offsets_of([1101])
    after = offsets_of([901])
    x = random(1101, 24, seed=1, dtype=dtype)
    keys = random(1101, 2, 16, seed=2, dtype=dtype)
    sizes = torch.randint(1, 9, (1101,)).float()
    results = []
    for threads in (1, 3):
        with thread_count(threads):
            results.append(kernels.merge(x, keys, sizes, offsets, after, 1, name))
    for one, shared in zip(*results, strict=True):
        assert torch.equal(one, shared)


@pytest.mark.parametrize("name", RULE_NAMES)
def test_among_equal_similarities_the_lowest_index_wins(name: RuleName) -> None:
    keys = torch.ones(41, 2, 16)
    x = torch.randn(41, 8)
    _, _, dest, merged = kernels.merge(
        x, keys, None, torch.tensor([0, 41]), torch.tensor([0, 36]), 1, name
    )
    matching = RULES[name].matcher(keys.mean(dim=1)[None], 5, 1)
    assert torch.equal(dest, matching.dest[0])
    assert torch.equal(merged, matching.merged[0])


@pytest.mark.parametrize(("name", "heads"), [("paper", 1), ("pairs", 4), ("nearest", 4)])
@pytest.mark.parametrize("r", [1, 7, 20, 33])
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_ties_among_different_similarities_are_settled_in_order(
    name: RuleName, heads: int, r: int, dtype: torch.dtype
) -> None:
    """Keys of 64 ones and minus ones have the length 8, so no similarity is rounded."""
    keys = random(67, 64, seed=r, dtype=dtype).sign()
    x = random(67, 8, seed=1, dtype=dtype)
    offsets = torch.tensor([0, 67])
    after = torch.tensor([0, 67 - r])
    _, _, dest, merged = kernels.merge(x, keys.view(67, heads, -1), None, offsets, after, 1, name)
    matching = RULES[name].matcher(keys[None].float(), r, 1)
    assert torch.equal(dest, matching.dest[0])
    assert torch.equal(merged, matching.merged[0])


@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
def test_opposite_tokens_that_become_a_pair_make_a_token_of_zero(dtype: torch.dtype) -> None:
    x = torch.full((2, 40), 5, dtype=dtype)
    x[1] = -5
    keys = torch.ones(2, 1, 16, dtype=dtype)
    tokens, sizes, _, _ = kernels.merge(
        x, keys, None, torch.tensor([0, 2]), torch.tensor([0, 1]), 0, "pairs"
    )
    assert torch.equal(tokens, torch.zeros(1, 40, dtype=dtype))
    assert sizes.tolist() == [2]


@pytest.mark.parametrize("name", RULE_NAMES)
@pytest.mark.parametrize("bad_value", [float("nan"), float("inf")])
def test_nan_or_infinity_in_one_image_does_not_reach_the_others(
    bad_value: float, name: RuleName
) -> None:
    keys = torch.randn(60, 2, 16)
    x = torch.randn(60, 8)
    offsets = torch.tensor([0, 20, 40, 60])
    after = torch.tensor([0, 15, 30, 45])
    clean = kernels.merge(x, keys, None, offsets, after, 1, name)
    keys[20:40] = bad_value
    tokens, sizes, dest, _ = kernels.merge(x, keys, None, offsets, after, 1, name)
    for part in (slice(0, 15), slice(30, 45)):
        assert torch.equal(tokens[part], clean[0][part])
    assert sizes[15:30].sum() == 20
    assert 0 <= int(dest[20:40].min()) <= int(dest[20:40].max()) < 15
    out = kernels.attention(keys, keys, keys, None, offsets)
    assert out[20:40].isnan().all()
    assert out[:20].isfinite().all()
    assert out[40:].isfinite().all()


@given(st.integers(1, 9), st.integers(1, 200), dtypes, st.floats(-50, 50), st.integers(0, 99))
def test_layer_norm_equals_pytorch(
    rows: int,
    dim: int,
    dtype: torch.dtype,
    shift: float,
    seed: int,
) -> None:
    x = random(rows, dim, seed=seed).add(shift).to(dtype)
    weight = random(dim, seed=seed + 1)
    bias = random(dim, seed=seed + 2)
    result = kernels.layer_norm(x, weight.float(), bias.float(), 1e-6)
    expected = F.layer_norm(x.double(), (dim,), weight, bias, 1e-6)
    torch.testing.assert_close(
        result.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-3, atol=1e-2
    )


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), dtypes)
def test_normalise_scales_and_shifts_pixels(
    batch: int,
    channels: int,
    height: int,
    width: int,
    dtype: torch.dtype,
) -> None:
    pixels = torch.randint(256, (batch, channels, height, width), dtype=torch.uint8)
    scale = torch.rand(channels) / 255
    shift = torch.randn(1)
    result = kernels.normalise(pixels, scale, shift, dtype)
    expected = (pixels.double() * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)).to(
        dtype
    )
    torch.testing.assert_close(
        result, expected, rtol=8e-3 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )


@given(
    st.integers(0, 300),
    st.integers(1, 40),
    st.integers(1, 400),
    dtypes,
    st.booleans(),
    st.integers(0, 99),
)
@example(5, 1536, 70, torch.float32, False, 1)
@example(97, 1536, 70, KERNEL_DTYPES[-1], True, 1)
def test_linear_equals_pytorch_and_rows_are_independent(
    rows: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    gelu: bool,
    seed: int,
) -> None:
    inputs *= 2
    x = random(rows, inputs, seed=seed, dtype=dtype)
    weight = random(outputs, inputs, seed=seed + 1, dtype=dtype)
    bias = None if seed % 5 == 0 else random(outputs, seed=seed + 2, dtype=dtype)
    packed = kernels.pack_linear(weight, bias)
    with thread_count(1) if seed % 2 else nullcontext():
        result = kernels.linear(x, packed, gelu)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    expected = F.gelu(expected) if gelu else expected
    torch.testing.assert_close(
        result.double(),
        expected,
        rtol=8e-3 if dtype == torch.bfloat16 else 1e-5,
        atol=inputs * 1e-6,
    )
    for part in (slice(rows // 3, None), slice(0, rows // 2)):
        assert torch.equal(kernels.linear(x[part], packed, gelu), result[part])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 6), "4 features in torch.float32 on cpu expected, got rows of 6"),
        (torch.ones(2, 2), "got rows of 2"),
        (torch.ones(2, 4).bfloat16(), "got rows of 4 features in torch.bfloat16"),
        (torch.ones(2, 4, device="meta"), "on meta"),
    ],
)
def test_input_that_does_not_match_the_weight_is_rejected(x: Tensor, message: str) -> None:
    packed = kernels.pack_linear(torch.ones(4, 4), None)
    with pytest.raises(ValueError, match=message):
        kernels.linear(x, packed)
    with pytest.raises(ValueError, match="3 inputs are not a multiple of 2"):
        kernels.pack_linear(torch.ones(128, 3).bfloat16(), None)


@given(st.floats(-30, 30, width=32) | st.floats(-(2.0**99), 2.0**99, width=32))
def test_gelu_equals_pytorch(x: float) -> None:
    value = torch.tensor([[x]])
    result = kernels.linear(value, kernels.pack_linear(torch.ones(1, 1), None), gelu=True)
    torch.testing.assert_close(result.double(), F.gelu(value.double()), rtol=1e-6, atol=4e-7)


def test_linear_propagates_nan_and_infinity() -> None:
    x = torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [float("-inf"), 1.0], [1.0, 1.0]])
    for dtype in TOLERANCE:
        packed = kernels.pack_linear(torch.ones(70, 2, dtype=dtype), None)
        for gelu in (False, True):
            out = kernels.linear(x.to(dtype), packed, gelu)
            assert out[0].isnan().all()
            assert out[1].isposinf().all()
            assert out[3].isfinite().all()
            assert gelu or out[2].isneginf().all()
