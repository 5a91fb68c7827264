"""Merging tokens that are equal changes nothing, because a token of size s weighs as s tokens do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tome_core.models import make_vit
from tome_core import Schedule, patch


def images_of_pairs(count: int) -> torch.Tensor:
    """Images of 4 x 4 patches of 4 pixels, in which each patch of an even column is followed by its double."""
    patches = torch.randn(count, 3, 4, 4, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.stack([patches, patches], dim=5).reshape(count, 3, 16, 16)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("pool", ["token", "avg", "avgmax", "map"])
def test_merging_doubles_changes_nothing(pool: str, fused: bool) -> None:
    options: dict[str, Any] = {"global_pool": pool, "pos_embed": "none", "class_token": pool == "token"}
    vit = make_vit(**options)
    if vit.attn_pool is not None:
        vit.attn_pool.fused_attn = fused
    model = patch(vit)
    with torch.no_grad():
        trace = model.trace(images_of_pairs(3), r=Schedule.per_layer([8]))
        torch.testing.assert_close(trace.logits, vit(images_of_pairs(3)), rtol=1e-9, atol=1e-9)
    patches = trace.sizes[:, model.merging.prefix :]
    assert (patches == 2).all()
