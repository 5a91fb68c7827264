from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core import oracle
from tome_core.matching import Matching
from tome_core.merge import accumulation_dtype, compose, merge, unmerge, weighted_mean


@st.composite
def matchings(draw: st.DrawFn) -> tuple[Tensor, int]:
    """``dest (2, N)`` onto all of ``[0, length)``, in no particular order."""
    tokens = draw(st.integers(1, 10))
    length = draw(st.integers(1, tokens))
    extra = st.lists(st.integers(0, length - 1), min_size=tokens - length, max_size=tokens - length)
    rows = [draw(st.permutations([*range(length), *draw(extra)])) for _ in range(2)]
    return torch.tensor(rows), length


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@given(matchings(), st.data())
def test_merge_equals_the_oracle(matching: tuple[Tensor, int], data: st.DataObject) -> None:
    dest, length = matching
    tokens = dest.shape[1]
    numbers = data.draw(st.lists(st.integers(1, 50), min_size=2 * tokens, max_size=2 * tokens))
    x = _random(2, tokens, 3)
    sizes = torch.tensor(numbers, dtype=torch.float64).view(2, tokens)
    merged, merged_sizes = merge(x, sizes, dest, length)
    assert merged.shape == (2, length, 3)
    for image in range(2):
        for position in range(length):
            sources = [
                oracle.Token(x[image, token].numpy(), [0] * int(sizes[image, token]))
                for token in range(tokens)
                if dest[image, token] == position
            ]
            expected = oracle.combine(sources)
            np.testing.assert_allclose(
                merged[image, position].numpy(), expected.value, rtol=1e-12, atol=1e-12
            )
            assert merged_sizes[image, position] == expected.size


@given(matchings())
def test_unmerge_gives_each_token_the_value_it_merged_into(matching: tuple[Tensor, int]) -> None:
    dest, length = matching
    merged = _random(2, length, 3)
    dense = unmerge(merged, dest)
    for image, row in enumerate(dest.tolist()):
        for token, position in enumerate(row):
            assert torch.equal(dense[image, token], merged[image, position])


def test_compose_follows_one_more_step() -> None:
    first = torch.tensor([[0, 1, 1, 2, 3], [3, 2, 1, 0, 0]])
    second = torch.tensor([[0, 2, 1, 2], [1, 0, 1, 0]])
    assert compose(first, second).tolist() == [[0, 2, 2, 1, 2], [0, 1, 0, 1, 1]]


def test_merge_has_the_right_gradient() -> None:
    dest = torch.tensor([[0, 3, 1, 3, 2], [0, 1, 2, 3, 3]])
    x = _random(2, 5, 2).requires_grad_()
    sizes = torch.tensor(
        [[1.0, 2, 1, 5, 3], [1, 1, 1, 4, 2]], dtype=torch.float64, requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda x, sizes: merge(x, sizes, dest, 4), (x, sizes))
    assert torch.autograd.gradcheck(
        lambda x: unmerge(merge(x, sizes.detach(), dest, 4)[0], dest), (x,)
    )


def test_merging_in_bfloat16_accumulates_in_float32() -> None:
    # bfloat16 cannot count beyond 256, nor add 600 small numbers to one sum.
    x = torch.full((1, 600, 4), 0.3, dtype=torch.bfloat16)
    dest = torch.arange(600).remainder(2).unsqueeze(0)
    merged, sizes = merge(x, torch.ones(1, 600), dest, 2)
    assert sizes.dtype == torch.float32 and sizes.tolist() == [[300, 300]]
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged, x[:, :2], rtol=0, atol=0)


@given(matchings())
def test_models_combine_by_merge(matching: tuple[Tensor, int]) -> None:
    dest, length = matching
    x = _random(*dest.shape, 3)
    sizes = 1 + _random(*dest.shape).abs()
    combined = weighted_mean(
        x, sizes, Matching(dest, torch.zeros_like(dest, dtype=torch.bool)), length
    )
    assert all(
        torch.equal(a, b) for a, b in zip(combined, merge(x, sizes, dest, length), strict=True)
    )


def test_merge_changes_no_argument() -> None:
    x = _random(1, 4, 2)
    sizes = torch.ones(1, 4, dtype=torch.float64)
    dest = torch.tensor([[0, 1, 1, 0]])
    copies = x.clone(), sizes.clone(), dest.clone()
    merge(x, sizes, dest, 2)
    assert all(torch.equal(now, then) for now, then in zip((x, sizes, dest), copies, strict=True))


@pytest.mark.parametrize(
    ("dtype", "accumulated"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_accumulation_dtype(dtype: torch.dtype, accumulated: torch.dtype) -> None:
    assert accumulation_dtype(dtype) == accumulated
