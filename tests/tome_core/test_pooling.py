"""Merging tokens that are equal changes nothing, because a token of size s counts as s tokens.

Equal patches are equal tokens only if they have no positions, or equal ones. A model with absolute
positions has no equal tokens. A model with rotary or relative positions has some if, for example,
its angles or biases do not depend on the column. Two equal patches of one row may then merge, and
the merged token must have the angle or the bias of that row. If the column matters too, the merged
token has the position of one of the two patches, so the result changes. The last test checks that
such a change would be noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelThingsBlock
from timm.models.vision_transformer_relpos import VisionTransformerRelPos

from tests.tome_core.models import CLASSES, make_vit, randomise
from tome_core import Schedule, optimize, patch

POOLS = ["token", "avg", "map"]
SHAPE: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 2.0,
}
# Half of the pairs, so that tokens of both sizes are left, and all of them.
COUNTS = pytest.mark.parametrize("counts", [[5], [8]])


def images_of_pairs(count: int) -> torch.Tensor:
    """Images of 4 x 4 patches of 4 pixels, in which each patch of an even column is followed by its
    double.
    """
    patches = torch.randn(
        count, 3, 4, 4, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    return torch.stack([patches, patches], dim=5).reshape(count, 3, 16, 16)


def make_rotary(pool: str, columns: bool) -> Any:
    """A model with learned angles, which count rows, and columns too where ``columns`` says so."""
    rope: dict[str, Any] = {
        "use_rot_pos_emb": True,
        "rope_type": "mixed",
        "rope_grid_indexing": "ij",
    }
    vit = Eva(
        **SHAPE,
        **rope,
        num_classes=CLASSES,
        global_pool=pool,
        class_token=pool == "token",
        use_abs_pos_emb=False,
    )
    randomise(vit)
    with torch.no_grad():
        vit.rope.freqs.normal_(generator=torch.Generator().manual_seed(1))
        if not columns:
            vit.rope.freqs[1] = 0
    return vit.double().eval()


def make_biased(pool: str, columns: bool) -> Any:
    """A BEiT with a learned bias for the distance in rows, and in columns too where ``columns``
    says so.
    """
    vit = Beit(
        **SHAPE, num_classes=CLASSES, global_pool=pool, use_abs_pos_emb=False, use_rel_pos_bias=True
    )
    randomise(vit)
    with torch.no_grad():
        for block in vit.blocks:
            distances = block.attn.relative_position_bias_table[:-3].mul_(5).unflatten(0, (7, 7))
            if not columns:
                distances.copy_(distances[:, :1].expand_as(distances))
    return vit.double().eval()


def make_computed(pool: str, columns: bool) -> Any:
    """A bias computed from the distance in rows, and in columns too where ``columns`` says so."""
    vit = VisionTransformerRelPos(
        **SHAPE, num_classes=CLASSES, global_pool=pool, class_token=pool == "token"
    )
    randomise(vit)
    with torch.no_grad():
        for block in vit.blocks:
            block.attn.rel_pos.mlp.fc2.weight.mul_(5)
            if not columns:
                block.attn.rel_pos.mlp.fc1.weight[:, 1] = 0
    return vit.double().eval()


PLACED: list[tuple[Callable[[str, bool], Any], str]] = [
    *((make_rotary, pool) for pool in POOLS),
    *((make_biased, pool) for pool in ("token", "avg")),
    *((make_computed, pool) for pool in ("token", "avg")),
]


@torch.no_grad()
def assert_unchanged(vit: Any, counts: list[int]) -> None:
    images = images_of_pairs(3)
    r = Schedule.per_layer(counts)
    model = patch(vit)
    trace = model.trace(images, r=r)
    for logits in (trace.logits, optimize(model)(images, r=r)):
        torch.testing.assert_close(logits, vit(images), rtol=1e-9, atol=1e-9)
    assert isinstance(trace.sizes, torch.Tensor)
    patches = trace.sizes[:, model.merging.prefix :]
    assert (patches == 2).sum() == 3 * counts[0] and (patches <= 2).all()
    if counts == [5]:  # where all tokens are of one size, attention cannot tell
        unsized = patch(vit, prop_attn=False)(images, r=r)
        assert not torch.allclose(unsized, trace.logits, atol=1e-4), (
            "sizes must matter, or this proves nothing"
        )


@COUNTS
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("pool", [*POOLS, "avgmax"])
def test_merging_equal_patches_changes_nothing(pool: str, fused: bool, counts: list[int]) -> None:
    vit = make_vit(global_pool=pool, pos_embed="none", class_token=pool == "token")
    if vit.attn_pool is not None:
        vit.attn_pool.fused_attn = fused
    assert_unchanged(vit, counts)


@COUNTS
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    "options", [{"attn_layer": "diff"}, {"block_fn": ParallelThingsBlock}, {"reg_tokens": 3}]
)
def test_merging_equal_patches_changes_nothing_in_other_blocks(
    pool: str, options: dict[str, Any], counts: list[int]
) -> None:
    assert_unchanged(
        make_vit(global_pool=pool, pos_embed="none", class_token=pool == "token", **options), counts
    )


@COUNTS
@pytest.mark.parametrize(("make", "pool"), PLACED)
def test_merging_equal_patches_at_equal_positions_changes_nothing(
    make: Callable[[str, bool], Any], pool: str, counts: list[int]
) -> None:
    assert_unchanged(make(pool, False), counts)


@pytest.mark.parametrize(("make", "pool"), PLACED)
@torch.no_grad()
def test_merging_equal_patches_at_different_positions_matters(
    make: Callable[[str, bool], Any], pool: str
) -> None:
    vit = make(pool, True)
    images = images_of_pairs(3)
    assert not torch.allclose(patch(vit)(images, r=Schedule.per_layer([8])), vit(images), atol=1e-4)
    # Rows matter in the models of the test above too.
    rows = make(pool, False)
    assert not torch.allclose(
        rows(images), rows(images[:, :, [*range(4, 8), *range(4), *range(8, 16)]]), atol=1e-4
    )
