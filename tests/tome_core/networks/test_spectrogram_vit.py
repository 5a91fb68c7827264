"""The Audio Spectrogram Transformer: transformers' own at r=0, and an oracle of loops above."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tome_core
from tests.tome_core import oracle
from tests.tome_core.models import DEPTH, as_schedule, randomise, specs
from tests.tome_core.spectrograms import make_ast, make_spectrograms
from tome_core.networks.spectrogram_vit import SpectrogramViT

transformers = pytest.importorskip("transformers")

SPECTROGRAMS = make_spectrograms(3)
SHAPES: dict[str, dict[str, Any]] = {
    "audioset": {"frequency_stride": 10, "time_stride": 10, "max_length": 104},
    "short": {"frequency_stride": 10, "time_stride": 10, "max_length": 16},
    "no-overlap": {"frequency_stride": 16, "time_stride": 16, "max_length": 64},
    "two-strides": {"frequency_stride": 7, "time_stride": 13, "max_length": 77},
    "few-bins": {"frequency_stride": 6, "time_stride": 4, "num_mel_bins": 40, "patch_size": 8},
}


def make_pair(**shape: Any) -> tuple[Any, SpectrogramViT]:
    """Transformers' class with random weights, and ours with the same."""
    config = transformers.ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=7,
        **{"max_length": 60, **shape},
    )
    theirs = transformers.ASTForAudioClassification(config).eval()
    randomise(theirs)
    ours = SpectrogramViT(
        img_size=(config.num_mel_bins, config.max_length),
        patch_size=config.patch_size,
        stride=(config.frequency_stride, config.time_stride),
        embed_dim=32,
        depth=2,
        num_heads=4,
        mlp_ratio=1.5,
        num_classes=7,
        norm_layer=torch.nn.LayerNorm,
    )
    for module in ours.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = config.layer_norm_eps
    copy_weights(theirs, ours)
    return theirs, ours.eval()


@torch.no_grad()
def copy_weights(theirs: Any, ours: Any) -> None:
    body = theirs.audio_spectrogram_transformer
    ours.cls_token.copy_(body.embeddings.cls_token)
    ours.reg_token.copy_(body.embeddings.distillation_token)
    ours.pos_embed.copy_(body.embeddings.position_embeddings)
    ours.patch_embed.proj.load_state_dict(body.embeddings.patch_embeddings.projection.state_dict())
    for layer, block in zip(body.layers, ours.blocks, strict=True):
        attention = layer.attention
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        block.attn.qkv.weight.copy_(torch.cat([one.weight for one in projections]))
        block.attn.qkv.bias.copy_(torch.cat([one.bias for one in projections]))
        block.attn.proj.load_state_dict(attention.o_proj.state_dict())
        block.norm1.load_state_dict(layer.layernorm_before.state_dict())
        block.norm2.load_state_dict(layer.layernorm_after.state_dict())
        block.mlp.fc1.load_state_dict(layer.mlp.fc1.state_dict())
        block.mlp.fc2.load_state_dict(layer.mlp.fc2.state_dict())
    ours.norm.load_state_dict(body.layernorm.state_dict())
    ours.fc_norm.load_state_dict(theirs.classifier.layernorm.state_dict())
    ours.head.load_state_dict(theirs.classifier.dense.state_dict())


@pytest.mark.parametrize("shape", SHAPES)
def test_at_r_0_it_is_transformers_model(shape: str) -> None:
    theirs, ours = make_pair(**SHAPES[shape])
    size = (theirs.config.num_mel_bins, theirs.config.max_length)
    inputs = make_spectrograms(3, size, dtype=torch.float32)
    model = tome_core.patch(ours)
    with torch.no_grad():
        expected = theirs(inputs[:, 0].transpose(1, 2)).logits  # it takes (B, frames, mel bins)
        torch.testing.assert_close(ours(inputs), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-5)
        fast = tome_core.optimize(model)
        torch.testing.assert_close(fast(inputs), expected, rtol=1e-4, atol=1e-4)


def test_at_r_0_it_is_the_network_itself() -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"num_classes": 0},
        {"stride": 6, "no_embed_class": True},
        {"global_pool": "avg"},
    ]
    for options in variants:
        vit = make_ast(**options)
        model = tome_core.patch(vit)
        torch.testing.assert_close(model(SPECTROGRAMS), vit(SPECTROGRAMS))
        features = vit.forward_head(vit.forward_features(SPECTROGRAMS), pre_logits=True)
        torch.testing.assert_close(model.embed(SPECTROGRAMS), features)


@given(spec=specs(most=6), prop_attn=st.booleans(), pool=st.sampled_from(["token", "avg"]))
def test_it_equals_the_oracle(spec: oracle.Spec, prop_attn: bool, pool: str) -> None:
    vit = make_ast(global_pool=pool)
    model = tome_core.patch(vit, prop_attn=prop_attn)
    expected = oracle.forward(vit, SPECTROGRAMS[0].numpy(), spec, prop_attn)
    schedule = as_schedule(spec)
    trace = model.trace(SPECTROGRAMS[:1], schedule)
    for actual in (trace.logits[0], model(SPECTROGRAMS[:1], schedule)[0]):
        np.testing.assert_allclose(actual.detach().numpy(), expected.logits, atol=1e-10)
    pooled = model.embed(SPECTROGRAMS[:1], schedule)[0].detach().numpy()
    np.testing.assert_allclose(pooled, expected.pooled, atol=1e-10)
    assert trace.source[0].tolist() == expected.source
    assert trace.sizes[0].tolist() == expected.sizes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mixed_batch_equals_its_images_one_by_one(dtype: torch.dtype) -> None:
    model = tome_core.optimize(tome_core.patch(make_ast()), dtype)
    spectrograms = SPECTROGRAMS.to(dtype)
    mixed = model(spectrograms, r=[0, 4, 1])
    single = [model(spectrograms[i : i + 1], r=r) for i, r in enumerate([0, 4, 1])]
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.15}[dtype]
    torch.testing.assert_close(mixed, torch.cat(single), rtol=tolerance, atol=tolerance)


def test_only_the_two_prefix_tokens_leave_the_last_block() -> None:
    model = tome_core.optimize(tome_core.patch(make_ast(dtype=torch.float32)))
    spectrograms = SPECTROGRAMS.float()
    for r in (0, 3):
        trace = model.trace(spectrograms, r)
        torch.testing.assert_close(model(spectrograms, r), trace.logits, rtol=1e-4, atol=1e-4)
    assert model.adapter.leading == 2
    assert model.merging.prefix == 2


def test_grid_tokens_and_cost() -> None:
    model = tome_core.patch(make_ast())
    assert model.patch_grid(SPECTROGRAMS) == (3, 5)
    assert model.input_tokens(SPECTROGRAMS) == 17
    width = 16
    patches = 15 * 6 * 6 * width
    head = 5 * width
    cost = model.cost()
    assert cost.fixed == patches + head
    assert len(cost.blocks) == DEPTH
    assert cost.relative(model.token_counts(4, 17)) < 1


def test_the_published_sizes_have_the_published_tokens() -> None:
    with torch.device("meta"):
        counts = {
            frames: SpectrogramViT(img_size=(128, frames), depth=1, num_classes=527).pos_embed
            for frames in (1024, 512, 128)
        }
    assert {frames: table.shape[1] for frames, table in counts.items()} == {
        1024: 12 * 101 + 2,
        512: 12 * 50 + 2,
        128: 12 * 12 + 2,
    }
