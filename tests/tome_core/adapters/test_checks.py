from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention, DiffAttention
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import nn

from tests.tome_core.models import make_images, make_vit
from tome_core import UnsupportedModelError, patch


class MyBlock(Block):
    """Inherits everything, and could override anything."""


class MyAttention(Attention):
    pass


class MyTransformer(VisionTransformer):
    pass


def _refused(vit: nn.Module, *names: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        patch(vit)
    for name in names:
        assert name in str(caught.value)


def test_unknown_blocks_are_refused() -> None:
    _refused(make_vit(block_fn=MyBlock), "blocks.0", "MyBlock")


@pytest.mark.parametrize("block", [ParallelScalingBlock, DiffParallelScalingBlock])
def test_blocks_with_parallel_branches_are_refused(block: type[nn.Module]) -> None:
    _refused(
        make_vit(block_fn=block),
        "blocks.0",
        block.__name__,
        "side by side",
        "no point between them",
    )


def test_one_unknown_block_among_many_is_refused() -> None:
    vit = make_vit()
    vit.blocks[2] = MyBlock(16, 2)
    _refused(vit, "blocks.2", "MyBlock")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_fn": ResPostBlock},
        {"attn_layer": DiffAttention},
        {"block_fn": ResPostBlock, "attn_layer": DiffAttention},
    ],
)
def test_unknown_attention_is_refused(options: dict[str, Any]) -> None:
    vit = make_vit(**options)
    vit.blocks[0].attn = MyAttention(16, 2)
    _refused(vit, "blocks.0.attn", "MyAttention")


def test_unknown_parts_of_parallel_blocks_are_refused() -> None:
    vit = make_vit(block_fn=ParallelThingsBlock, drop_path_rate=0.1)
    _refused(vit, "blocks.1.attns.0", "drop_path_rate=0")
    vit = make_vit(block_fn=ParallelThingsBlock)
    vit.blocks[1].attns[1].attn = MyAttention(16, 2)
    _refused(vit, "blocks.1.attns.1.attn", "MyAttention")
    vit = make_vit(block_fn=ParallelThingsBlock)
    vit.blocks[2].ffns[1].mlp = nn.Linear(16, 16)
    _refused(vit, "blocks.2.ffns.1.mlp", "Linear")
    vit = make_vit(block_fn=ParallelThingsBlock)
    vit.blocks[2].attns[1].attn = Attention(16, num_heads=4)
    _refused(vit, "blocks.2", "differ in their heads")
    vit = make_vit(block_fn=ParallelThingsBlock)
    vit.blocks[0].attns[0].register_forward_hook(lambda *_: None)
    _refused(vit, "blocks.0.attns.0", "hooks")


@pytest.mark.parametrize(
    "make",
    [
        lambda: SwinTransformer(
            img_size=16, patch_size=2, window_size=2, embed_dim=8, depths=(1,), num_heads=(1,)
        ),
        lambda: ResNet(BasicBlock, (1, 1), channels=(8, 8), stem_width=8),
        lambda: MyTransformer(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2),
        lambda: nn.Linear(2, 2),
        lambda: patch(make_vit()),
    ],
)
def test_unknown_models_are_refused(make: Callable[[], nn.Module]) -> None:
    model = make()
    _refused(model, type(model).__name__)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_tiny_patch4_window7_224", "windows"),
        ("swinv2_tiny_window8_256", "windows"),
        ("hiera_tiny_224", "pyramid"),
        ("xcit_nano_12_p16_224", "across channels"),
        ("cait_xxs24_224", "class token alone"),
        ("volo_d1_224", "outlook attention"),
        ("naflexvit_base_patch16_gap", "padding"),
        ("samvit_base_patch16", "windows"),
        ("convit_tiny", "a gate in each head"),
        ("coat_tiny", "convolves"),
        ("coatnet_0_rw_224", "convolves"),
        ("crossvit_9_240", "two sequences"),
        ("davit_tiny", "windows"),
        ("gcvit_tiny", "windows"),
        ("levit_128", "pyramid"),
        ("levit_conv_128", "pyramid"),
        ("maxvit_nano_rw_256", "convolves"),
        ("mvitv2_tiny", "pyramid"),
        ("nest_tiny", "windows"),
        ("pit_s_224", "pyramid"),
        ("pvt_v2_b0", "pyramid"),
        ("sam2_hiera_tiny", "pyramid"),
        ("swinv2_cr_tiny_224", "windows"),
        ("tnt_s_patch16_224", "pixels"),
        ("tiny_vit_5m_224", "windows"),
        ("twins_pcpvt_small", "windows"),
        ("visformer_tiny", "pyramid"),
    ],
)
def test_families_that_cannot_merge_are_refused_with_a_reason(name: str, reason: str) -> None:
    with torch.device("meta"):
        vit = timm.create_model(name)
    _refused(vit, f"the model is a {type(vit).__name__}, which", reason)


@pytest.mark.parametrize(("pool", "name"), [("prr", "attn_pool"), ("", "global_pool=''")])
def test_unknown_pools_are_refused(pool: str, name: str) -> None:
    _refused(make_vit(global_pool=pool), name)


@pytest.mark.parametrize(
    ("where", "path"),
    [("the model", ""), ("blocks.1", "blocks.1"), ("blocks.1.attn", "blocks.1.attn")],
)
@pytest.mark.parametrize(
    "value",
    [3, nn.Identity(), nn.Parameter(torch.zeros(1)), torch.zeros(1), lambda x: x, None],
    ids=lambda value: type(value).__name__,
)
def test_an_unknown_attribute_or_part_is_refused(where: str, path: str, value: Any) -> None:
    vit = make_vit()
    setattr(vit.get_submodule(path), "novelty", value)  # noqa: B010 - nn.Module's stubs know no such name
    _refused(vit, where, "novelty")


@pytest.mark.parametrize("path", ["blocks.1", "blocks.1.attn"])
def test_an_unknown_buffer_is_refused(path: str) -> None:
    vit = make_vit()
    vit.get_submodule(path).register_buffer("novelty", torch.zeros(1))
    _refused(vit, path, "novelty")


@pytest.mark.parametrize("path", ["", "blocks.1", "blocks.1.attn"])
def test_a_replaced_forward_is_refused(path: str) -> None:
    vit = make_vit()
    module = vit.get_submodule(path)
    module.__dict__["forward"] = lambda x, **_: 2 * x
    _refused(vit, "forward")


@pytest.mark.parametrize("path", ["", "blocks.1", "blocks.1.attn"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_forward_hook_that_would_not_run_is_refused(path: str, register: str) -> None:
    vit = make_vit()
    getattr(vit.get_submodule(path), register)(lambda *_: None)
    _refused(vit, path or "the model", "hooks")


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_forward_hook_on_the_sequence_of_blocks_is_refused(register: str) -> None:
    vit = make_vit()
    getattr(vit.blocks, register)(lambda *_: None)
    _refused(vit, "blocks", "hooks")


def test_hooks_on_parts_that_are_called_still_run() -> None:
    vit = make_vit()
    vit.blocks[0].attn.qkv.register_forward_hook(lambda module, args, out: 2 * out)
    images = make_images(2)
    torch.testing.assert_close(patch(vit)(images), vit(images), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(vit(images), make_vit()(images))


@pytest.mark.parametrize("part", ["norm1", "norm2", "attn.q_norm", "attn.k_norm", "attn.norm"])
def test_a_norm_that_mixes_tokens_is_refused(part: str) -> None:
    vit = make_vit()
    vit.blocks[0].set_submodule(part, nn.BatchNorm1d(17))
    _refused(vit, f"blocks.0.{part}", "BatchNorm1d")


@pytest.mark.parametrize("part", ["ls1", "ls2", "drop_path1", "drop_path2", "mlp"])
def test_a_part_of_an_unknown_type_is_refused(part: str) -> None:
    vit = make_vit()
    setattr(vit.blocks[1], part, nn.Linear(16, 16))
    _refused(vit, f"blocks.1.{part}", "Linear")


def test_unknown_containers_and_norms_of_the_model_are_refused() -> None:
    vit = make_vit()
    vit.norm = nn.BatchNorm1d(17)
    _refused(vit, "norm", "BatchNorm1d")
    vit = make_vit()
    vit.blocks = nn.ModuleList(vit.blocks)
    _refused(vit, "blocks", "ModuleList")


def test_an_unknown_attention_dropout_is_refused() -> None:
    vit = make_vit()
    vit.blocks[1].attn.attn_drop = nn.AlphaDropout(0.5)
    _refused(vit, "blocks.1.attn.attn_drop", "AlphaDropout")


def test_an_unknown_scale_is_refused() -> None:
    vit = make_vit()
    vit.blocks[1].attn.scale = 1.0
    _refused(vit, "blocks.1.attn", "scale")


@pytest.mark.parametrize("part", ["norm1", "mlp", "ls1"])
def test_a_missing_part_is_refused(part: str) -> None:
    vit = make_vit()
    delattr(vit.blocks[1], part)
    _refused(vit, "blocks.1", part)


def test_a_refused_model_is_untouched() -> None:
    vit = make_vit(block_fn=ParallelScalingBlock)
    images = make_images(1)
    expected = vit(images)
    _refused(vit, "ParallelScalingBlock")
    assert torch.equal(vit(images), expected)
    assert type(vit.blocks[0]) is ParallelScalingBlock


def test_the_error_is_a_value_error() -> None:
    assert issubclass(UnsupportedModelError, ValueError)
