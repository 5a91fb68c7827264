from __future__ import annotations

import pytest
from timm.layers import GELU, LayerNorm, LayerNormFp32, RmsNorm
from torch import nn

from tome_core.adapters.plain_layers import are_identities, is_exact_gelu, is_plain_layer_norm


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), LayerNorm(8)])
def test_a_layer_norm_over_channels_is_plain(norm: nn.Module) -> None:
    assert is_plain_layer_norm(norm)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(8, elementwise_affine=False),
        nn.LayerNorm(8, bias=False),
        nn.LayerNorm((4, 8)),
        LayerNormFp32(8),
        RmsNorm(8),
        nn.RMSNorm(8),
        nn.Identity(),
    ],
    ids=str,
)
def test_other_norms_are_not_plain(norm: nn.Module) -> None:
    assert not is_plain_layer_norm(norm)


def test_only_gelu_by_erf_is_exact() -> None:
    assert is_exact_gelu(nn.GELU())
    assert is_exact_gelu(GELU())
    assert not is_exact_gelu(nn.GELU(approximate="tanh"))
    assert not is_exact_gelu(nn.SiLU())


def test_all_modules_must_be_identities() -> None:
    assert are_identities(nn.Identity(), nn.Identity())
    assert not are_identities(nn.Identity(), nn.Dropout(0.0))
