"""ViTs of video: the network itself at r=0, and an oracle of loops above."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tome_core
from tests.tome_core import oracle
from tests.tome_core.clips import FRAMES, GRID, HEIGHT, WIDTH, make_clips, make_video_vit
from tests.tome_core.models import as_schedule, specs
from tome_core import Schedule
from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.layers import PackedTubelets

CLIPS = make_clips(3)
VARIANTS: dict[str, dict[str, Any]] = {
    "mean": {},  # VideoMAE
    "class-token-and-mean": {"class_token": True},  # MAE-ST
    "class-token": {"class_token": True, "global_pool": "token"},  # ViViT
    "features-only": {"num_classes": 0},
}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.15}


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_r_0_it_is_the_network_itself(variant: str) -> None:
    vit = make_video_vit(**VARIANTS[variant])
    model = tome_core.patch(vit)
    assert torch.equal(model(CLIPS), vit(CLIPS))
    features = vit.forward_head(vit.forward_features(CLIPS), pre_logits=True)
    assert torch.equal(model.embed(CLIPS), features)


@given(spec=specs(most=6), prop_attn=st.booleans(), variant=st.sampled_from(list(VARIANTS)))
def test_it_equals_the_oracle(spec: oracle.Spec, prop_attn: bool, variant: str) -> None:
    vit = make_video_vit(**VARIANTS[variant])
    model = tome_core.patch(vit, prop_attn=prop_attn)
    expected = oracle.forward(vit, CLIPS[0].numpy(), spec, prop_attn)
    schedule = as_schedule(spec)
    trace = model.trace(CLIPS[:1], schedule)
    for actual in (trace.logits[0], model(CLIPS[:1], schedule)[0]):
        np.testing.assert_allclose(actual.detach().numpy(), expected.logits, atol=1e-10)
    pooled = model.embed(CLIPS[:1], schedule)[0].detach().numpy()
    np.testing.assert_allclose(pooled, expected.pooled, atol=1e-10)
    assert trace.source[0].tolist() == expected.source
    assert trace.sizes[0].tolist() == expected.sizes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["mean", "class-token"])
def test_a_mixed_batch_equals_its_clips_one_by_one(variant: str, dtype: torch.dtype) -> None:
    vit = make_video_vit(**VARIANTS[variant])
    model = tome_core.optimize(tome_core.patch(vit), dtype)
    clips = CLIPS.to(dtype)
    schedules = [Schedule.constant(0), Schedule.constant(4), Schedule.linear(2, -1)]
    mixed = model(clips, r=schedules)
    single = [model(clips[i : i + 1], r=r) for i, r in enumerate(schedules)]
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(mixed, torch.cat(single), rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not kernels.available(), reason="layers are replaced by those of the kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_optimized_it_is_the_same_without_a_convolution(variant: str, dtype: torch.dtype) -> None:
    vit = make_video_vit(dtype=torch.float32, embed_dim=32, **VARIANTS[variant])
    model = tome_core.patch(vit)
    fast = tome_core.optimize(model, dtype)
    if kernels.supports(dtype):
        assert type(fast.get_submodule("patch_embed.proj")) is PackedTubelets
        assert not any(isinstance(module, nn.Conv3d) for module in fast.modules())
    clips = CLIPS.float()
    expected = model.embed(clips)
    tolerance = TOLERANCE[dtype]
    embedded = fast.embed(clips.to(dtype)).float()
    torch.testing.assert_close(embedded, expected, rtol=tolerance, atol=tolerance)
    if dtype == torch.float32:
        for r in (3, [0, 5, 2]):
            trace = fast.trace(clips, r)
            torch.testing.assert_close(trace.logits, model(clips, r), rtol=1e-4, atol=1e-4)
            assert torch.equal(trace.source, model.trace(clips, r).source)


@torch.no_grad()
def test_a_copy_gives_the_same() -> None:
    model = tome_core.optimize(tome_core.patch(make_video_vit(dtype=torch.float32)))
    clips = CLIPS.float()
    assert torch.equal(copy.deepcopy(model)(clips, r=3), model(clips, r=3))


def test_grid_tokens_and_dense_features() -> None:
    model = tome_core.patch(make_video_vit(class_token=True))
    assert model.patch_grid(CLIPS) == GRID
    assert model.input_tokens(CLIPS) == 13
    maps = model.intermediates(CLIPS, r=3, output_fmt="NCHW")
    assert {tuple(one.shape) for one in maps} == {(3, 16, *GRID)}


def test_only_the_class_token_leaves_the_last_block_where_it_alone_is_read() -> None:
    leading = {
        variant: tome_core.patch(make_video_vit(**options)).adapter.leading
        for variant, options in VARIANTS.items()
    }
    assert leading == {
        "mean": None,
        "class-token-and-mean": None,
        "class-token": 1,
        "features-only": None,
    }


def test_positions_are_not_resampled() -> None:
    vit = make_video_vit()
    vit.set_input_size((FRAMES * HEIGHT, WIDTH), 4)
    with pytest.raises(ValueError, match="cannot change from \\(32, 12\\)"):
        vit.set_input_size((64, 12))
    with pytest.raises(ValueError, match="cannot change from \\(4, 4\\)"):
        vit.set_input_size(patch_size=2)
    with pytest.raises(ValueError, match="clips of one size"):
        make_video_vit(dynamic_img_size=True)
    with pytest.raises(ValueError, match="expected"):
        tome_core.patch(vit)(CLIPS[:, :, :24])


def test_it_trains_with_merging() -> None:
    vit = make_video_vit(class_token=True).train()
    tome_core.patch(vit)(CLIPS, r=3).square().sum().backward()
    gradients = [one.grad for one in vit.parameters()]
    assert all(one is not None and one.isfinite().all() for one in gradients)
