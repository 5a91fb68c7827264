"""V-JEPA 2: transformers' own at r=0, and an oracle of loops above."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tome_core
import tome_core.networks.vjepa2_architectures as architectures
from tests.tome_core import oracle
from tests.tome_core.models import DEPTH, as_schedule, make_images, randomise, specs
from tests.tome_core.vjepa2 import copy_weights, make_clips, make_vjepa2, rotation
from tome_core.networks.vjepa2 import VJepa2
from tome_core.rules import RULE_NAMES, RuleName

transformers = pytest.importorskip("transformers")

VIT = make_vjepa2()
CLIPS = make_clips(VIT, 3)
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"frames_per_clip": 8, "crop_size": 64, "hidden_size": 64},
    # Heads of 64 channels, as in the published models: three segments of 20, and 4 that stay.
    "wide-heads": {"frames_per_clip": 4, "crop_size": 32, "hidden_size": 128},
    # Heads of 18 channels, which three segments of 6 fill.
    "nothing-stays": {"frames_per_clip": 6, "crop_size": 32, "hidden_size": 36, "tubelet_size": 3},
}


def make_pair(dtype: torch.dtype, **shape: Any) -> tuple[Any, VJepa2]:
    """Transformers' class with random weights, and ours with the same."""
    config = transformers.VJEPA2Config(
        num_hidden_layers=3,
        num_attention_heads=2,
        num_pooler_layers=2,
        pred_hidden_size=12,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        num_labels=7,
        **{"tubelet_size": 2, **shape},
    )
    theirs = transformers.VJEPA2ForVideoClassification(config).eval()
    randomise(theirs)
    with torch.no_grad():
        theirs.classifier.weight.mul_(0.1)  # logits of the order of 1
    ours = VJepa2(
        frames=config.frames_per_clip,
        tubelet=config.tubelet_size,
        img_size=config.crop_size,
        embed_dim=config.hidden_size,
        depth=3,
        num_heads=2,
        num_classes=7,
        pooler_depth=2,
    )
    copy_weights(theirs, ours)
    return theirs.to(dtype), ours.eval().to(dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["32", "64"]
)
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_at_r_0_it_is_transformers_model(shape: str, dtype: torch.dtype, tolerance: float) -> None:
    theirs, ours = make_pair(dtype, **SHAPES[shape])
    clips = make_clips(ours, 2)
    frames = clips.unflatten(2, (ours.patch_embed.frames, -1)).transpose(1, 2)  # (B, T, C, H, W)
    model = tome_core.patch(ours)
    expected = theirs(frames).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(clips), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(model(clips), expected, rtol=tolerance, atol=tolerance)
    fast = tome_core.optimize(model)
    torch.testing.assert_close(fast(clips), expected, rtol=10 * tolerance, atol=10 * tolerance)
    encoded = theirs.vjepa2.get_vision_features(frames)
    features = ours.forward_features(clips)
    torch.testing.assert_close(features, encoded, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_at_r_0_it_is_the_network_itself() -> None:
    variants: list[dict[str, Any]] = [{}, {"num_classes": 0}, {"global_pool": "avg"}]
    for options in variants:
        vit = make_vjepa2(**options)
        model = tome_core.patch(vit)
        torch.testing.assert_close(model(CLIPS), vit(CLIPS))
        features = vit.forward_head(vit.forward_features(CLIPS), pre_logits=True)
        torch.testing.assert_close(model.embed(CLIPS), features)
        assert set(model.state_dict()) == set(vit.state_dict())


@torch.no_grad()
def test_without_classes_the_features_are_the_mean_of_the_tokens() -> None:
    vit = make_vjepa2(num_classes=0)
    trace = tome_core.patch(vit).trace(CLIPS, r=5)
    mean = trace.unmerge().mean(dim=1)  # every tubelet counts once
    torch.testing.assert_close(trace.logits, mean)
    assert vit.attn_pool is None


@settings(max_examples=15)
@given(
    spec=specs(most=14),
    prop_attn=st.booleans(),
    classes=st.sampled_from([0, 5]),
    merging=st.sampled_from(RULE_NAMES),
)
def test_it_equals_the_oracle(
    spec: oracle.Spec, prop_attn: bool, classes: int, merging: RuleName
) -> None:
    vit = make_vjepa2(num_classes=classes)
    model = tome_core.patch(vit, merging=merging, prop_attn=prop_attn)
    expected = oracle.forward(
        vit, CLIPS[0].numpy(), spec, prop_attn, rotate=rotation(vit), merging=merging
    )
    schedule = as_schedule(spec)
    trace = model.trace(CLIPS[:1], schedule, residual=True)
    for actual in (trace.logits[0], model(CLIPS[:1], schedule)[0]):
        np.testing.assert_allclose(actual.detach().numpy(), expected.logits, atol=1e-10)
    pooled = model.embed(CLIPS[:1], schedule)[0].detach().numpy()
    np.testing.assert_allclose(pooled, expected.pooled, atol=1e-10)
    assert trace.source[0].tolist() == expected.source
    assert trace.sizes[0].tolist() == expected.sizes
    unmerged = vit.norm(torch.from_numpy(expected.unmerged[-1]))
    torch.testing.assert_close(trace.unmerge()[0], unmerged, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_mixed_batch_equals_its_clips_one_by_one(dtype: torch.dtype) -> None:
    model = tome_core.optimize(tome_core.patch(make_vjepa2()), dtype)
    clips = CLIPS.to(dtype)
    mixed = model(clips, r=[0, 9, 3])
    single = [model(clips[i : i + 1], r=r) for i, r in enumerate([0, 9, 3])]
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.15}[dtype]
    torch.testing.assert_close(mixed, torch.cat(single), rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_the_optimised_network_equals_the_plain_one() -> None:
    model = tome_core.patch(make_vjepa2(dtype=torch.float32))
    fast = tome_core.optimize(model)
    clips = CLIPS.float()
    for r in (0, 5, [9, 0, 3]):
        plain = model(clips, r=r)
        torch.testing.assert_close(fast(clips, r=r), plain, rtol=1e-4, atol=1e-4)
        expected = model.trace(clips, r=r)
        trace = fast.trace(clips, r=r)
        assert torch.equal(trace.source, expected.source)
        torch.testing.assert_close(trace.logits, plain, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter() -> None:
    model = tome_core.patch(make_vjepa2().train())
    model(CLIPS, r=[2, 3, 0]).square().sum().backward()
    missing = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all()
    ]
    assert missing == []


def test_grid_and_tokens() -> None:
    vit = make_vjepa2(img_size=(16, 12), frames=6)
    model = tome_core.patch(vit)
    clips = make_images(1, (6 * 16, 12))
    assert vit.grid == (3, 4, 3)
    assert model.patch_grid(clips) == (12, 3)
    assert model.input_tokens(clips) == 36
    assert model.token_counts(18, 36) == (36, 18, 9, 5)
    assert model.merging.prefix == 0
    assert model.adapter.leading is None
    assert len(model.adapter.blocks) == DEPTH


def test_the_published_sizes_have_the_published_tokens() -> None:
    shapes = {}
    with torch.device("meta"):
        for name in architectures.VJEPA2_ARCHITECTURES:
            vit = timm.create_model(name, depth=1)
            hidden = vit.blocks[0].mlp.fc1.out_features
            shapes[name] = (vit.patch_embed.num_patches, vit.embed_dim, hidden)
            assert vit.num_classes == 0
    assert shapes == {
        "vjepa2_vit_large_patch16_256": (8192, 1024, 4096),
        "vjepa2_vit_huge_patch16_256": (8192, 1280, 5120),
        "vjepa2_vit_giant_patch16_256": (8192, 1408, 6144),
        "vjepa2_vit_giant_patch16_384": (18432, 1408, 6144),
    }
    vit = timm.create_model(name, depth=1, frames=16, num_classes=174, embed_dim=48, num_heads=2)
    assert (vit.grid, vit.global_pool, len(vit.attn_pool.blocks)) == ((8, 24, 24), "map", 3)
