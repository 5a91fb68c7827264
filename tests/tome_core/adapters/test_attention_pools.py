"""An attentive pooler with a part that no adapter knows is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import AttentionPoolLatent
from torch import nn

from tests.tome_core.vjepa2 import make_vjepa2
from tome_core import UnsupportedModelError, patch


def _add_positions(pooler: Any) -> None:
    pooler.cross_attn.pos_embed = nn.Parameter(torch.zeros(32, 32))


def _convolve(pooler: Any) -> None:
    pooler.blocks[1].mlp = nn.Conv1d(32, 32, 3)


def _scale(pooler: Any) -> None:
    pooler.blocks[0].attn.scale = 1.0


def _observe(pooler: Any) -> None:
    pooler.register_forward_hook(lambda *_: None)


def _extend(pooler: Any) -> None:
    pooler.novelty = nn.Identity()


def _normalise_by_batch(pooler: Any) -> None:
    pooler.norm2 = nn.BatchNorm1d(32)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_add_positions, "attn_pool.cross_attn has pos_embed"),
        (_convolve, r"attn_pool\.blocks\.1\.mlp is a Conv1d"),
        (_scale, r"attn_pool\.blocks\.0\.attn scales by 1\.0"),
        (_observe, "attn_pool .* has hooks"),
        (_extend, "attn_pool .* has novelty"),
        (_normalise_by_batch, r"attn_pool\.norm2 is a BatchNorm1d"),
    ],
)
def test_unknown_parts_are_refused(change: Callable[[Any], None], sentence: str) -> None:
    vit = make_vjepa2()
    change(vit.attn_pool)
    with pytest.raises(UnsupportedModelError, match=sentence):
        patch(vit)


def test_other_pools_are_refused_and_timms_is_not() -> None:
    vit: Any = make_vjepa2()
    vit.attn_pool = nn.Linear(32, 32)
    with pytest.raises(UnsupportedModelError, match="attn_pool is a Linear"):
        patch(vit)
    vit.attn_pool = AttentionPoolLatent(32, num_heads=2).double()
    assert patch(vit).cost().pool_blocks == ()
