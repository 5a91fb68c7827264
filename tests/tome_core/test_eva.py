"""Models of timm's Eva class: exact at r=0, and merged tokens have their destination's rotary
position.
"""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from tests.tome_core.models import randomise
from tome_core import Bipartite, Schedule, UnsupportedModelError, optimize, patch

MODELS: dict[str, dict[str, Any]] = {
    # Rotary positions, registers, LayerScale, average pool.
    "vit_small_patch16_dinov3": {"img_size": 64, "depth": 3},
    # SwiGLU.
    "vit_small_plus_patch16_dinov3": {"img_size": 64, "depth": 2},
    # Absolute and rotary positions, packed SwiGLU.
    "eva02_tiny_patch14_336": {"img_size": 56, "depth": 3},
    # Separate q, k, v; norm within attention.
    "eva02_base_patch16_clip_224": {"img_size": 64, "depth": 2},
    # Post-norm.
    "eva02_enormous_patch14_clip_224": {
        "img_size": 56,
        "depth": 2,
        "embed_dim": 96,
        "num_heads": 4,
    },
    # No rotary positions.
    "eva_giant_patch14_224": {
        "img_size": 56,
        "depth": 2,
        "embed_dim": 96,
        "num_heads": 4,
    },
    # Attention pool.
    "vit_pe_core_tiny_patch16_384": {"img_size": 64, "depth": 2},
    "vit_small_patch16_rope_224": {"img_size": 64, "depth": 2},
    # Learned angles of each block and head.
    "vit_small_patch16_rope_mixed_224": {"img_size": 64, "depth": 3},
    # Grouped queries, qk-norm.
    "vit_base_patch16_sapiens2": {
        "img_size": 64,
        "depth": 2,
        "embed_dim": 48,
        "num_heads": 4,
        "num_kv_heads": (4, 2),
    },
}


def make_eva(name: str) -> Any:
    vit = timm.create_model(name, num_classes=5, **MODELS[name]).double().eval()
    randomise(vit)
    return vit


def images_for(vit: Any, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(
        count, 3, *vit.patch_embed.img_size, dtype=torch.float64, generator=generator
    )


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_is_timm_at_r_0(name: str) -> None:
    vit = make_eva(name)
    images = images_for(vit, 3)
    model = patch(vit)
    torch.testing.assert_close(model(images), vit(images), rtol=1e-10, atol=1e-10)
    pooled = vit.forward_head(vit.forward_features(images), pre_logits=True)
    torch.testing.assert_close(model.embed(images), pooled, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(optimize(model)(images), vit(images), rtol=1e-9, atol=1e-9)
    assert set(model.state_dict()) == set(vit.state_dict())


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_mixed_schedules_equal_single_images(name: str) -> None:
    vit = make_eva(name)
    images = images_for(vit, 5)
    model = patch(vit)
    schedules = [0, 3, Schedule.linear(2, -1), 40, 3]
    together = model(images, r=schedules)
    alone = torch.cat([model(images[i : i + 1], r=schedules[i]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    trace = model.trace(images, r=3)
    assert isinstance(trace.sizes, Tensor)
    assert torch.equal(
        trace.sizes.sum(dim=1), torch.full((5,), model.input_tokens(images)).double()
    )


def attend(
    attn: Any, h: Tensor, angles: Tensor, sizes: Tensor, prefix: int
) -> tuple[Tensor, Tensor]:
    """Attention of one image by loops over heads; also the mean of the rotated keys."""
    n = len(h)
    d = attn.head_dim
    q, k, v = attn.qkv(h).reshape(n, 3, attn.num_heads, d).unbind(1)
    out = []
    keys = []
    for head in range(attn.num_heads):
        a = q[:, head].clone()
        b = k[:, head].clone()
        for token in range(prefix, n):
            a[token] = apply_rot_embed_cat(a[token], angles[token], half=attn.rotate_half)
            b[token] = apply_rot_embed_cat(b[token], angles[token], half=attn.rotate_half)
        weights = (a @ b.T / d**0.5 + sizes.log()).softmax(dim=-1)
        out.append(weights @ v[:, head])
        keys.append(b)
    return attn.proj(torch.cat(out, dim=-1)), torch.stack(keys).mean(dim=0)


@torch.no_grad()
def test_a_merged_token_is_rotated_as_its_destination() -> None:
    vit = make_eva("vit_small_patch16_dinov3")
    (image,) = images_for(vit, 1)
    prefix = vit.num_prefix_tokens
    r = 3
    x, tables = vit._pos_embed(vit.patch_embed(image[None]))
    x = vit.norm_pre(x)[0]
    angles = torch.cat([tables.new_zeros(prefix, tables.shape[1]), tables])
    sizes = torch.ones(len(x), dtype=torch.float64)
    for block in vit.blocks:
        out, keys = attend(block.attn, block.norm1(x), angles, sizes, prefix)
        x = x + block.gamma_1 * out
        dest = Bipartite()(keys[None], r, prefix).dest[0].tolist()
        length = max(dest) + 1
        # Destinations are the tokens of set B: at odd positions, prefix tokens included.
        holder = {dest[i]: i for i in range(len(x)) if dest.count(dest[i]) == 1 or i % 2}
        groups = [[i for i in range(len(x)) if dest[i] == j] for j in range(length)]
        x = torch.stack(
            [sum(sizes[i] * x[i] for i in group) / sizes[group].sum() for group in groups]
        )
        sizes = torch.stack([sizes[group].sum() for group in groups])
        angles = torch.stack([angles[holder[j]] for j in range(length)])
        x = x + block.gamma_2 * block.mlp(block.norm2(x))
    expected = vit.norm(x)
    trace = patch(vit).trace(image[None], r=r)
    torch.testing.assert_close(trace.tokens[0], expected, rtol=1e-9, atol=1e-9)


def test_unknown_parts_are_refused() -> None:
    options = {**MODELS["eva02_tiny_patch14_336"], "patch_drop_rate": 0.3}
    with pytest.raises(UnsupportedModelError, match="patch_drop"):
        patch(timm.create_model("eva02_tiny_patch14_336", **options))
    vit = make_eva("eva02_tiny_patch14_336")
    vit.blocks[1].novelty = 3
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1 .*novelty"):
        patch(vit)


def test_gradients_reach_every_parameter() -> None:
    vit = make_eva("vit_small_patch16_rope_mixed_224").train()
    model = patch(vit)
    model(images_for(vit, 2), r=[2, 3]).square().sum().backward()
    missing = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all()
    ]
    assert missing == []
