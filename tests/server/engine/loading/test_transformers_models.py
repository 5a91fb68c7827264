"""Folders and files of Hugging Face transformers give the outputs of its own classes."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from server.engine.loading.transformers_names import transformers_to_timm
from server.engine.loading.weights import load_weights
from server.errors import ConfigError
from tests.server.engine.loading.small_vit import DINOV2, DISTILLED, VIT, create_timm

hf = pytest.importorskip("transformers")

from tests.server.engine.loading.tiny_transformers import (  # noqa: E402, it imports transformers
    assert_same_outputs,
    beit,
    clip,
    deit,
    dinov2,
    dinov2_registers,
    expected_output,
    load,
    make,
    siglip,
    vit,
)

RELATIVE = {"use_relative_position_bias": True}
SHARED = {"use_shared_relative_position_bias": True}
CLASSIFIERS = {
    "ViT": (vit,),
    "DeiT": (deit, hf.DeiTForImageClassification),
    "DeiT with teacher": (deit, hf.DeiTForImageClassificationWithTeacher),
    "BEiT": (beit, hf.BeitForImageClassification, {**RELATIVE, "use_mask_token": True}),
    "DINOv2": (dinov2, hf.Dinov2ForImageClassification),
    "DINOv2 with registers": (dinov2_registers, hf.Dinov2WithRegistersForImageClassification),
    "SigLIP": (siglip, hf.SiglipForImageClassification),
    "CLIP": (clip, hf.CLIPForImageClassification),
}
ENCODERS = {
    "ViT": (vit, hf.ViTModel),
    "BEiT": (beit, hf.BeitModel, RELATIVE),
    "DINOv2 with registers": (dinov2_registers, hf.Dinov2WithRegistersModel),
    "SigLIP": (siglip, hf.SiglipVisionModel),
    "CLIP": (clip, hf.CLIPModel),
}
VARIANTS = {
    "ViT, gelu_new": (vit, hf.ViTForImageClassification, {"hidden_act": "gelu_new"}),
    "ViT, gelu_fast": (vit, hf.ViTForImageClassification, {"hidden_act": "gelu_fast"}),
    "ViT, quick_gelu": (vit, hf.ViTForImageClassification, {"hidden_act": "quick_gelu"}),
    "ViT, relu": (vit, hf.ViTForImageClassification, {"hidden_act": "relu"}),
    "ViT, large epsilon": (vit, hf.ViTForImageClassification, {"layer_norm_eps": 0.1}),
    "ViT, no bias": (vit, hf.ViTForImageClassification, {"qkv_bias": False}),
    "ViT, grey": (vit, hf.ViTForImageClassification, {"num_channels": 1}),
    "ViT, 4 heads": (vit, hf.ViTForImageClassification, {"num_attention_heads": 4}),
    "DeiT, no head": (deit, hf.DeiTModel),
    "BEiT, no positions": (beit,),
    "BEiT, shared bias": (beit, hf.BeitForImageClassification, SHARED),
    "BEiT, both biases, class token": (
        beit,
        hf.BeitForImageClassification,
        {**RELATIVE, **SHARED, "use_mean_pooling": False},
    ),
    "BEiT, absolute positions, tanh": (
        beit,
        hf.BeitForImageClassification,
        {"use_absolute_position_embeddings": True, "hidden_act": "gelu_new"},
    ),
    "BEiT, no LayerScale": (
        beit,
        hf.BeitForImageClassification,
        {**RELATIVE, "layer_scale_init_value": 0.0},
    ),
    "DINOv2, no head": (dinov2, hf.Dinov2Model),
    "DINOv2, SwiGLU": (dinov2, hf.Dinov2ForImageClassification, {"use_swiglu_ffn": True}),
    "DINOv2, no mask token": (dinov2, hf.Dinov2Model, {"use_mask_token": False}),
    "DINOv2 with registers, SwiGLU": (
        dinov2_registers,
        hf.Dinov2WithRegistersModel,
        {"use_swiglu_ffn": True},
    ),
    "SigLIP with text": (siglip, hf.SiglipModel),
    "SigLIP without pooling": (siglip, hf.SiglipVisionModel, {"vision_use_head": False}),
    "CLIP's vision model": (clip, hf.CLIPVisionModel),
    "CLIP's vision model, projection": (clip, hf.CLIPVisionModelWithProjection),
}


def build(name: str, table: dict[str, tuple[Any, ...]]) -> Any:
    function, *arguments = table[name]
    if arguments and isinstance(arguments[-1], dict):
        return make(function, *arguments[:-1], **arguments[-1])
    return make(function, *arguments)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_gives_transformers_logits(tmp_path: Path, name: str) -> None:
    model = build(name, CLASSIFIERS)
    model.save_pretrained(tmp_path)
    served = load(tmp_path)
    assert served.labels == ("cat", "dog", "fish")
    assert_same_outputs(model, served)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_gives_transformers_features(tmp_path: Path, name: str) -> None:
    model = build(name, ENCODERS)
    model.save_pretrained(tmp_path)
    served = load(tmp_path)
    assert served.labels == ()
    assert_same_outputs(model, served)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_gives_transformers_outputs(tmp_path: Path, name: str) -> None:
    model = build(name, VARIANTS)
    model.save_pretrained(tmp_path)
    assert_same_outputs(model, load(tmp_path))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_names_of_modules_load_as_those_of_files(tmp_path: Path, name: str) -> None:
    """Since version 5 these differ; ``torch.save(model.state_dict())`` writes those of modules."""
    model = build(name, CLASSIFIERS)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert_same_outputs(model, load(tmp_path))


def test_a_file_of_16_bits_is_computed_with_in_32(tmp_path: Path) -> None:
    """The class token of DINOv2 with registers is added to its position while loading."""
    model = build("DINOv2 with registers", CLASSIFIERS).bfloat16()
    model.save_pretrained(tmp_path)
    assert_same_outputs(model.float(), load(tmp_path))


def test_merging_counts_a_merged_patch_by_its_size(tmp_path: Path) -> None:
    """Equal patches merge without a change of the mean that DINOv2's classifier reads."""
    model = build("DINOv2", CLASSIFIERS)
    model.dinov2.embeddings.position_embeddings[:, 1:] = 0
    model.save_pretrained(tmp_path)
    served = load(tmp_path)
    images = torch.zeros(1, 3, 32, 32)
    with torch.inference_mode():
        merged = served.network(images, r=4)
        expected = model(images).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)


def test_an_index_of_several_files_loads(tmp_path: Path) -> None:
    model = build("ViT", CLASSIFIERS)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_same_outputs(model, load(tmp_path))


def test_a_missing_file_of_an_index_is_named(tmp_path: Path) -> None:
    build("ViT", CLASSIFIERS).save_pretrained(tmp_path, max_shard_size="20KB")
    path = min(tmp_path.glob("model-*.safetensors"))
    path.unlink()
    with pytest.raises(ConfigError, match=f"cannot read .*{path.name}"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["DINOv2", "DINOv2 with registers"])
def test_positions_are_resized_to_the_processor_s_images_as_in_transformers(
    tmp_path: Path,
    name: str,
) -> None:
    model = build(name, CLASSIFIERS)
    model.save_pretrained(tmp_path)
    processor = hf.BitImageProcessor(size={"shortest_edge": 28}, crop_size=24)
    processor.save_pretrained(tmp_path)
    served = load(tmp_path)
    assert served.transform.size == (3, 24, 24)
    assert_same_outputs(model, served, 24)


def test_positions_are_resized_to_the_entry_s_image(tmp_path: Path) -> None:
    model = build("ViT", CLASSIFIERS)
    model.save_pretrained(tmp_path)
    assert_same_outputs(model, load(tmp_path, img_size=48), 48, interpolate_pos_encoding=True)


def test_relative_positions_of_another_size_are_refused(tmp_path: Path) -> None:
    build("BEiT", CLASSIFIERS).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be resized to 6 x 6; set img_size = \[32, 32\]"):
        load(tmp_path, img_size=48)


# Architectures of timm for files without a folder.
ARCHITECTURES = {
    "ViT": VIT,
    "DeiT with teacher": DISTILLED,
    "BEiT": "beit_base_patch16_224",
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_file_loads_into_an_architecture_of_timm(tmp_path: Path, name: str) -> None:
    model = build(name, CLASSIFIERS)
    model.save_pretrained(tmp_path)
    network = create_timm(ARCHITECTURES[name], mlp_ratio=2.5, num_classes=3)
    load_weights(network, tmp_path / "model.safetensors")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(
            network(images), expected_output(model, images), rtol=1e-4, atol=1e-4
        )


def test_the_classifier_of_dinov2_needs_its_folder(tmp_path: Path) -> None:
    build("DINOv2", CLASSIFIERS).save_pretrained(tmp_path)
    network = create_timm(DINOV2, mlp_ratio=3, num_classes=3)
    with pytest.raises(ConfigError, match="reads the class token and the mean of the patches"):
        load_weights(network, tmp_path / "model.safetensors")


# Names of OpenAI's and OpenCLIP's image tower, by timm's.
OPENAI_NAMES = {
    "norm_pre.": "ln_pre.",
    "norm.": "ln_post.",
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "blocks.": "transformer.resblocks.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "patch_embed.proj.": "conv1.",
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
}


def to_openai(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of transformers' CLIP with the names and shapes of OpenAI's."""
    tensors = {"visual.proj": model.visual_projection.weight.T.contiguous()}
    for name, tensor in transformers_to_timm(model.state_dict()).items():
        for of_timm, of_openai in OPENAI_NAMES.items():
            name = re.sub(rf"(^|(?<=\.)){re.escape(of_timm)}", of_openai, name)
        tensors[f"visual.{name}"] = tensor.squeeze(0) if "embedding" in name else tensor
    tensors["visual.class_embedding"] = tensors["visual.class_embedding"].flatten()
    tensors["transformer.resblocks.0.ln_1.weight"] = torch.ones(8)  # of the text model
    tensors["logit_scale"] = torch.ones(())
    return tensors


@pytest.mark.parametrize("prefix", ["", "module."])
def test_openai_s_names_of_clip_load_with_its_projection(tmp_path: Path, prefix: str) -> None:
    model = make(clip, hf.CLIPVisionModelWithProjection)
    path = tmp_path / "clip.pt"
    torch.save({f"{prefix}{key}": value for key, value in to_openai(model).items()}, path)
    classes = model.visual_projection.out_features
    name = "vit_base_patch32_clip_quickgelu_224"
    network = create_timm(name, mlp_ratio=2.5, num_classes=classes)
    load_weights(network, path)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(
            network(images), model(images).image_embeds, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("prefix", ["", "model.", "net.encoder."])
def test_a_file_of_a_training_script_around_transformers_loads(tmp_path: Path, prefix: str) -> None:
    model = build("ViT", CLASSIFIERS)
    model.config.save_pretrained(tmp_path)
    state_dict = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
    content = {"state_dict": {**state_dict, "criterion.weight": torch.ones(3)}}
    if not prefix:
        content = {"model_state_dict": state_dict}
    torch.save(content, tmp_path / "best.pt")
    assert_same_outputs(model, load(tmp_path))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "swin"}, "a model of type 'swin' of transformers, which is not supported"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish' is not supported; supported: gelu"),
        ({"num_attention_heads": 5}, "5 heads of 6 for a width of 32 are not supported"),
        ({"num_hidden_layers": 3}, r"lacks blocks\.2\.norm1\.weight .*are the two files of one"),
        ({"num_channels": 1}, r"has shape \(32, 3, 8, 8\).*set in_chans = 3"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "the keys of id2label must be 0, 1, 2"),
        ({"id2label": {"0": "a"}}, "1 labels for 3 classes"),
        ({"hidden_size": "wide"}, "hidden_size = 'wide' is no positive number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_named(
    tmp_path: Path,
    changes: dict[str, Any],
    sentence: str,
) -> None:
    build("ViT", CLASSIFIERS).save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_head_is_named(tmp_path: Path) -> None:
    model = make(vit, hf.ViTForMaskedImageModeling, encoder_stride=8)
    model.save_pretrained(tmp_path)
    expected = r"has decoder\.0\.bias.*\(this one is ViTForMaskedImageModeling\)"
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path)


def test_a_model_of_several_labels_per_image_gives_a_warning(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make(vit, problem_type="multi_label_classification").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "tome.engine"):
        load(tmp_path, activation="sigmoid")
        assert "sigmoid" not in caplog.text
        load(tmp_path)
    assert 'set activation = "sigmoid"' in caplog.text


def test_labels_of_the_entry_have_precedence(tmp_path: Path) -> None:
    build("ViT", CLASSIFIERS).save_pretrained(tmp_path)
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\n")
    assert load(tmp_path, labels=labels).labels == ("a", "b", "c")


def test_the_file_holds_what_transformers_saved(tmp_path: Path) -> None:
    """A change of the names that transformers writes shows here first."""
    build("ViT", CLASSIFIERS).save_pretrained(tmp_path)
    keys = load_file(tmp_path / "model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in keys
