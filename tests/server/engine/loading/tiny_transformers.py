"""Tiny vision models of Hugging Face transformers, with random weights, in folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from server.catalog.entries import ModelSpec
from server.engine.loading.model_loader import LoadedModel, load_model
from tests.server.engine.loading.published import randomise

LABELS = {0: "cat", 1: "dog", 2: "fish"}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
MLP = {"intermediate_size": 80}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60000,
}
CPU = torch.device("cpu")


def vit(kind: Any = hf.ViTForImageClassification, **options: Any) -> Any:
    return kind(hf.ViTConfig(**{**SIZES, **MLP, "id2label": LABELS, **options}))


def deit(kind: Any, **options: Any) -> Any:
    return kind(hf.DeiTConfig(**{**SIZES, **MLP, "id2label": LABELS, **options}))


def beit(kind: Any = hf.BeitForImageClassification, **options: Any) -> Any:
    return kind(hf.BeitConfig(**{**SIZES, **MLP, "id2label": LABELS, **options}))


def dinov2(kind: Any, **options: Any) -> Any:
    return kind(hf.Dinov2Config(**{**SIZES, "mlp_ratio": 3, "id2label": LABELS, **options}))


def dinov2_registers(kind: Any, **options: Any) -> Any:
    sizes = {**SIZES, "mlp_ratio": 3, "id2label": LABELS}
    return kind(hf.Dinov2WithRegistersConfig(**{**sizes, **options}))


def siglip(kind: Any, **options: Any) -> Any:
    vision = {**SIZES, **MLP, **options}
    if kind is hf.SiglipVisionModel:
        return kind(hf.SiglipVisionConfig(**vision))
    return kind(hf.SiglipConfig(vision_config=vision, text_config=TEXT, id2label=LABELS))


def clip(kind: Any, **options: Any) -> Any:
    vision = {**SIZES, **MLP, **options}
    if kind in (hf.CLIPVisionModel, hf.CLIPVisionModelWithProjection):
        return kind(hf.CLIPVisionConfig(**vision))
    return kind(hf.CLIPConfig(vision_config=vision, text_config=TEXT, id2label=LABELS))


def make(build: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return randomise(build(*arguments, **options))


def load(folder: Path, **fields: Any) -> LoadedModel:
    """Load a folder as the server does."""
    spec = ModelSpec(name="m", timm=f"local-dir:{folder}", **fields)
    return load_model(spec, CPU, torch.float32, levels=(0,))


def expected_output(model: Any, images: Tensor, **options: Any) -> Tensor:
    """Return logits, or the features that `docs/checkpoints.md` says ``/embed`` gives.

    These are the class token after the last norm of ViT and DeiT, else ``pooler_output``.
    """
    if type(model) in (hf.CLIPModel, hf.SiglipModel, hf.CLIPVisionModelWithProjection):
        model = model.vision_model
    output = model(images, **options)
    if "logits" in output:
        return output.logits
    if isinstance(model, hf.ViTModel | hf.DeiTModel):
        return output.last_hidden_state[:, 0]
    if output.pooler_output is None:
        return output.last_hidden_state.mean(dim=1)
    return output.pooler_output


def assert_same_outputs(model: Any, served: LoadedModel, side: int = 32, **options: Any) -> None:
    images = torch.randn(2, served.transform.size[0], side, side)
    with torch.inference_mode():
        found = served.network(images, r=0)
        expected = expected_output(model, images, **options)
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
