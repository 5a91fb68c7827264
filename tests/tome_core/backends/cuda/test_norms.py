"""Residual sums and layer norms against PyTorch, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tome_core.backends.cuda.device import DEVICE
from tome_core.backends.cuda.norms import Rows, add_norm, launch_add_norm

EPS = 1e-6
LIMITS = {
    torch.float32: 3e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}  # of 1, or of the number if that is more
DTYPES = list(LIMITS)


def make(tokens: int, width: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """``x``, ``branch``, ``weight`` and ``bias``."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(tokens, width), (tokens, width), (width,), (width,)]
    drawn = [torch.randn(*shape, generator=generator).to(dtype).to(DEVICE) for shape in shapes]
    return [3 * drawn[0] + 1, *drawn[1:]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "width"), [(1, 8), (5, 100), (3, 384), (7, 768), (2, 1024), (3, 1280), (2, 2048)]
)
def test_sum_equals_pytorch_and_the_norm_reads_it(
    tokens: int,
    width: int,
    dtype: torch.dtype,
) -> None:
    x, branch, weight, bias = make(tokens, width, dtype)
    total, normed = add_norm(x, branch, weight, bias, EPS)
    # Triton's interpreter truncates where a GPU rounds to bfloat16.
    truncation = 2**-7 if DEVICE == "cpu" and dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(total, x + branch, rtol=truncation, atol=0)
    expected = F.layer_norm(total.double(), (width,), weight.double(), bias.double(), EPS)
    assert normed.dtype == dtype
    torch.testing.assert_close(normed.double(), expected, rtol=LIMITS[dtype], atol=LIMITS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_branch_the_sum_is_the_input(dtype: torch.dtype) -> None:
    x, _, weight, bias = make(5, 192, dtype)
    total, normed = add_norm(x, None, weight, bias, EPS)
    assert total is x
    expected = F.layer_norm(x.double(), (192,), weight.double(), bias.double(), EPS)
    torch.testing.assert_close(normed.double(), expected, rtol=LIMITS[dtype], atol=LIMITS[dtype])


def test_a_large_mean_keeps_the_variance_exact() -> None:
    x, _, weight, bias = make(3, 64, torch.float32)
    x += 1000
    expected = F.layer_norm(x.double(), (64,), weight.double(), bias.double(), EPS)
    _, normed = add_norm(x, None, weight, bias, EPS)
    torch.testing.assert_close(normed.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("rows", [Rows(2, 1), Rows(4, 4)])
def test_programs_of_several_rows_stop_at_the_last_row(rows: Rows) -> None:
    x, branch, weight, bias = make(5, 96, torch.bfloat16)
    for given, several in zip(
        add_norm(x, branch, weight, bias, EPS),
        launch_add_norm(x, branch, weight, bias, EPS, rows),
        strict=True,
    ):
        torch.testing.assert_close(several, given, rtol=1.6e-2, atol=1.6e-2)


def test_result_is_independent_of_the_other_tokens() -> None:
    x, branch, weight, bias = make(6, 768, torch.bfloat16)
    together = add_norm(x, branch, weight, bias, EPS)
    alone = add_norm(x[4:5], branch[4:5], weight, bias, EPS)
    assert all(torch.equal(one, many[4:5]) for one, many in zip(alone, together, strict=True))
