"""Dense features of a merged backbone, against timm without merging and against the images one by
one.
"""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core.models import (
    DEPTH,
    VARIANTS,
    as_schedule,
    make_images,
    make_vit,
    randomise,
    specs,
)
from tests.tome_core.oracle import Spec
from tome_core import Schedule, optimize, patch

OPTIONS = [
    "class-token",
    "average-no-prefix",
    "distilled",
    "registers",
    "layer-scale",
    "pre-norm",
    "no-final-norm",
]
EVA: dict[str, dict[str, Any]] = {
    "vit_small_patch16_dinov3": {"img_size": 64, "depth": 3},
    "vit_small_patch16_rope_mixed_224": {"img_size": (64, 32), "depth": 2},
    "eva02_tiny_patch14_336": {"img_size": 56, "depth": 3},
    "vit_pe_core_tiny_patch16_384": {"img_size": 64, "depth": 2},
}
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def make(name: str) -> Any:
    if name in VARIANTS:
        return make_vit(**VARIANTS[name])
    vit = timm.create_model(name, num_classes=5, **EVA[name]).double().eval()
    randomise(vit)
    return vit


def images_for(vit: Any, count: int = 2) -> Tensor:
    return make_images(count, vit.patch_embed.img_size)


@pytest.mark.parametrize("layers", [None, 2, (1, -1), (-1, 0)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", [*OPTIONS, *EVA])
@torch.no_grad()
def test_features_without_merging_are_those_of_timm(name: str, norm: bool, layers: Any) -> None:
    vit = make(name)
    images = images_for(vit)
    model = patch(vit)
    for output_fmt in ("NLC", "NCHW"):
        expected = vit.forward_intermediates(
            images, layers, norm=norm, output_fmt=output_fmt, intermediates_only=True
        )
        found = model.intermediates(images, layers=layers, norm=norm, output_fmt=output_fmt)
        torch.testing.assert_close(found, expected, **EXACT)
    if vit.num_prefix_tokens:
        expected = vit.forward_intermediates(
            images, layers, norm=norm, return_prefix_tokens=True, intermediates_only=True
        )
        found = model.intermediates(
            images, layers=layers, norm=norm, output_fmt="NCHW", return_prefix_tokens=True
        )
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("name", [*OPTIONS, *EVA])
@torch.no_grad()
def test_tokens_are_those_of_timm_without_merging_and_of_a_trace_with_it(name: str) -> None:
    vit = make(name)
    images = images_for(vit, 3)
    model = patch(vit)
    torch.testing.assert_close(
        model.forward_features(images), vit.forward_features(images), **EXACT
    )
    for r in (2, [0, 2, 3]):
        torch.testing.assert_close(
            model.forward_features(images, r), model.trace(images, r).tokens, rtol=0, atol=0
        )


@settings(max_examples=25)
@given(st.sampled_from(OPTIONS), st.lists(specs(), min_size=1, max_size=4), st.booleans())
def test_each_image_has_the_features_it_has_alone(
    variant: str, batch: list[Spec], norm: bool
) -> None:
    model = patch(make_vit(**VARIANTS[variant]))
    images = make_images(len(batch))
    r = [as_schedule(spec) for spec in batch]
    together = model.intermediates(images, r, norm=norm, return_prefix_tokens=True)
    assert len(together) == DEPTH
    for at in range(len(batch)):
        alone = model.intermediates(
            images[at : at + 1], r[at], norm=norm, return_prefix_tokens=True
        )
        found = [(patches[at : at + 1], prefix[at : at + 1]) for patches, prefix in together]
        torch.testing.assert_close(found, alone, **EXACT)


@given(st.sampled_from(OPTIONS), st.lists(specs(), min_size=1, max_size=4))
def test_normalised_features_of_the_last_block_are_the_unmerged_trace(
    variant: str, batch: list[Spec]
) -> None:
    model = patch(make_vit(**VARIANTS[variant]))
    images = make_images(len(batch))
    r = [as_schedule(spec) for spec in batch]
    ((patches, prefix),) = model.intermediates(
        images, r, layers=1, norm=True, return_prefix_tokens=True
    )
    torch.testing.assert_close(
        torch.cat([prefix, patches], dim=1), model.trace(images, r).unmerge(), rtol=0, atol=0
    )


def test_patches_that_merged_by_a_block_share_its_features() -> None:
    model = patch(make_vit())
    images = make_images(3)
    for layer in range(DEPTH):
        (dense,) = model.intermediates(images, 3, layers=[layer])
        counts = [len(features.unique(dim=0)) for features in dense]
        assert counts == [16 - 3 * (layer + 1)] * 3


def test_blocks_after_the_last_requested_one_do_not_run() -> None:
    vit = make_vit()
    with torch.no_grad():
        vit.blocks[2].mlp.fc1.weight.fill_(float("nan"))
    (dense,) = patch(vit).intermediates(make_images(2), r=2, layers=[1])
    assert dense.isfinite().all()


@pytest.mark.parametrize("r", [0, 3, [0, 3, Schedule.linear(2, -1), 3]])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_dense_head_trains_the_backbone(r: Any, checkpointing: bool) -> None:
    vit = make_vit(reg_tokens=1)
    vit.set_grad_checkpointing(checkpointing)
    model = patch(vit).train()
    images = make_images(4).requires_grad_()
    maps = model.intermediates(images, r, layers=(0, 2), output_fmt="NCHW")
    assert [each.shape for each in maps] == [(4, 16, 4, 4)] * 2
    torch.cat(maps, dim=1).square().sum().backward()
    assert images.grad is not None and bool((images.grad.flatten(1).abs().sum(dim=1) > 0).all())
    for block in model.get_submodule("blocks").children():
        gradient = block.get_parameter("mlp.fc1.weight").grad
        assert (
            gradient is not None
            and bool(gradient.isfinite().all())
            and bool(gradient.abs().sum() > 0)
        )


def test_the_gradient_through_dense_features_is_the_right_one() -> None:
    model = patch(make_vit(depth=2, img_size=8, embed_dim=8))
    images = make_images(2, (8, 8)).requires_grad_()

    def dense(images: Tensor) -> tuple[Tensor, ...]:
        return (
            *model.intermediates(images, [1, 2], norm=True),
            model.trace(images, [1, 2]).unmerge(),
        )

    assert torch.autograd.gradcheck(dense, (images,), fast_mode=True)


@pytest.mark.parametrize("size", [(16, 24), (10, 13)])
@torch.no_grad()
def test_maps_of_other_image_sizes_are_those_of_timm(size: tuple[int, int]) -> None:
    vit = make_vit(dynamic_img_size=True, dynamic_img_pad=True)
    images = make_images(2, size)
    expected = vit.forward_intermediates(images, intermediates_only=True)
    torch.testing.assert_close(
        patch(vit).intermediates(images, output_fmt="NCHW"), expected, **EXACT
    )
    assert patch(vit).patch_grid(images) == tuple(expected[0].shape[-2:])


def test_layers_and_formats_that_do_not_exist_are_refused() -> None:
    model = patch(make_vit())
    images = make_images(1)
    refused: list[tuple[int | tuple[int, ...], str]] = [
        ((3,), "no block 3; the model has 3"),
        ((-4,), "no block -4"),
        (4, "last 4"),
        (0, "last 0"),
    ]
    for layers, sentence in refused:
        with pytest.raises(ValueError, match=sentence):
            model.intermediates(images, layers=layers)
    with pytest.raises(ValueError, match="layers is empty"):
        model.intermediates(images, layers=())
    with pytest.raises(ValueError, match="there are NLC, NCHW"):
        model.intermediates(images, output_fmt="HWC")  # type: ignore[arg-type]
    dropping = patch(make_vit(patch_drop_rate=0.5)).train()
    assert dropping.intermediates(images, r=1)[0].shape == (1, 8, 16)
    with pytest.raises(ValueError, match="8 patches do not fill a map of 4 x 4"):
        dropping.intermediates(images, r=1, output_fmt="NCHW")


@pytest.mark.parametrize("name", ["class-token", "distilled", "average-no-prefix", "features-only"])
def test_outputs_are_those_of_the_single_calls(name: str) -> None:
    model = patch(make_vit(**VARIANTS[name]))
    images = make_images(3)
    r = [0, 3, 2]
    for one in (model, optimize(model)):
        outputs = one.outputs(images, r, source=True)
        assert torch.equal(outputs.logits, one(images, r))
        assert torch.equal(outputs.features, one.embed(images, r))
        assert outputs.source is not None and torch.equal(
            outputs.source, one.trace(images, r).source
        )
        assert one.outputs(images, r).source is None
