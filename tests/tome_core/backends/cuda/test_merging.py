"""Residual, merge and norm in one kernel, against PyTorch and `tome_core.merge`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core.backends.cuda.device import DEVICE
from tests.tome_core.backends.cuda.merging_cases import Ragged, offsets, ragged
from tome_core.backends.cuda.matching import PackedMatching, match
from tome_core.backends.cuda.merging import launch_merge_norm, merge, merge_norm
from tome_core.merge import merge as reference

EPS = 1e-6
# The interpreter truncates where a GPU rounds to bfloat16.
LAST_BIT = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-6}


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def matched_of(batch: Ragged, seed: int = 0) -> PackedMatching:
    keys = random(sum(batch.lengths), 2, 8, seed=seed)
    return match(
        keys, offsets(batch.lengths), offsets(batch.after), batch.longest, sum(batch.after), 1
    )


def assert_equals_reference(
    batch: Ragged,
    dim: int,
    dtype: torch.dtype,
    has_sizes: bool,
    seed: int,
) -> None:
    tokens = sum(batch.lengths)
    left = sum(batch.after)
    matched = matched_of(batch, seed)
    x, branch = random(2, tokens, dim, seed=seed, dtype=dtype)
    weight, bias = random(2, dim, seed=seed + 1, dtype=dtype)
    sizes = random(tokens, seed=seed).abs().mul(9).ceil() + 1 if has_sizes else None
    merged, normed, new_sizes = merge_norm(
        x, branch, sizes, matched.order, matched.segment_starts, weight, bias, EPS
    )
    ones = torch.ones(tokens, device=DEVICE)
    expected, expected_sizes = reference(
        (x + branch)[None],
        (ones if sizes is None else sizes)[None],
        matched.dest[None].long(),
        left,
    )
    assert torch.equal(new_sizes, expected_sizes[0])
    last_bit = LAST_BIT[dtype]
    torch.testing.assert_close(merged, expected[0], rtol=last_bit, atol=last_bit)
    after_norm = F.layer_norm(merged.double(), (dim,), weight.double(), bias.double(), EPS)
    summed = x + branch
    if DEVICE == "cuda" or dtype != torch.bfloat16:  # which the interpreter does not round in a sum
        alone, alone_sizes = merge(summed, sizes, matched.order, matched.segment_starts)
        assert torch.equal(alone, merged)
        assert torch.equal(alone_sizes, new_sizes)
    torch.testing.assert_close(normed.double(), after_norm, rtol=last_bit, atol=max(last_bit, 1e-5))


@settings(max_examples=10)
@given(ragged(1, longest=20), st.sampled_from([16, 24, 129]), st.booleans(), st.integers(0, 9))
def test_equals_the_reference_merge_and_norm(
    batch: Ragged,
    dim: int,
    has_sizes: bool,
    seed: int,
) -> None:
    assert_equals_reference(batch, dim, torch.float32, has_sizes, seed)


@pytest.mark.parametrize("has_sizes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_tokens(dtype: torch.dtype, has_sizes: bool) -> None:
    assert_equals_reference(Ragged((17, 9, 3), (8, 0, 1)), 40, dtype, has_sizes, seed=3)


def test_tokens_that_stay_alone_keep_their_bits() -> None:
    batch = Ragged((12, 5), (2, 0))
    matched = matched_of(batch)
    x, branch = random(2, 17, 24, seed=1)
    sizes = random(17, seed=2).abs().mul(5).ceil() + 1
    weight = torch.ones(24, device=DEVICE)
    bias = torch.zeros(24, device=DEVICE)
    merged, _, _ = merge_norm(
        x, branch, None, matched.order, matched.segment_starts, weight, bias, EPS
    )
    with_sizes, _, _ = merge_norm(
        x, branch, sizes, matched.order, matched.segment_starts, weight, bias, EPS
    )
    alone = matched.segment_starts.diff() == 1
    from_token = matched.order[matched.segment_starts[:-1].long()].long()
    assert torch.equal(merged[alone], (x + branch)[from_token][alone])
    torch.testing.assert_close(with_sizes[alone], merged[alone], rtol=2e-7, atol=0)


def test_result_is_independent_of_the_other_images() -> None:
    batch = Ragged((20, 11, 4), (5, 3, 0))
    alone = Ragged((11,), (3,))
    matched = matched_of(batch)
    x, branch = random(2, 35, 24, seed=1)
    weight, bias = random(2, 24, seed=2)
    sizes = random(35, seed=3).abs() + 1
    together = merge_norm(
        x, branch, sizes, matched.order, matched.segment_starts, weight, bias, EPS
    )
    order = matched.order[20:31] - 20
    segment_starts = matched.segment_starts[15:24] - 20
    assert segment_starts[-1] == 11
    assert len(segment_starts) == alone.after[0] + 1
    result = merge_norm(
        x[20:31], branch[20:31], sizes[20:31], order, segment_starts, weight, bias, EPS
    )
    for one, all_of_them in zip(result, together, strict=True):
        assert torch.equal(one, all_of_them[15:23])


def test_other_numbers_of_warps_give_the_same_result() -> None:
    matched = matched_of(Ragged((9,), (4,)))
    x, branch = random(2, 9, 24, seed=1)
    weight, bias = random(2, 24, seed=2)
    arguments = (x, branch, None, matched.order, matched.segment_starts, weight, bias, EPS)
    for one, other in zip(
        merge_norm(*arguments), launch_merge_norm(*arguments, warps=1), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_merge_and_merge_norm_are_valid_operators() -> None:
    matched = matched_of(Ragged((9, 3), (4, 0)))
    x, branch = random(2, 12, 24, seed=1)
    weight, bias = random(2, 24, seed=2)
    for sizes in (None, torch.ones(12, device=DEVICE)):
        arguments = (x, branch, sizes, matched.order, matched.segment_starts, weight, bias, EPS)
        torch.library.opcheck(torch.ops.tome.merge_norm.default, arguments)
        torch.library.opcheck(
            torch.ops.tome.merge.default, (x, sizes, matched.order, matched.segment_starts)
        )
