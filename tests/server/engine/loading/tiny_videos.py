"""Tiny models of video with random weights, as transformers and timm save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from server.catalog.entries import ModelSpec
from server.engine.loading.model_loader import LoadedModel, load_model
from tests.server.engine.loading.published import randomise

pytest.importorskip("av")
hf = pytest.importorskip("transformers")

CPU = torch.device("cpu")
FRAMES = 8
SIDE = 32
PATCH = 8
LABELS = {0: "jump", 1: "run", 2: "wave"}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 80,
    "image_size": SIDE,
    "num_frames": FRAMES,
    "id2label": LABELS,
}


def videomae(kind: Any = hf.VideoMAEForVideoClassification, **options: Any) -> Any:
    """A VideoMAE of transformers with three labels."""
    return randomise(kind(hf.VideoMAEConfig(**{**SIZES, "patch_size": PATCH, **options})))


def vivit(kind: Any = hf.VivitForVideoClassification, **options: Any) -> Any:
    """A ViViT of transformers with three labels."""
    sizes = {**SIZES, "tubelet_size": [2, PATCH, PATCH]}
    return randomise(kind(hf.VivitConfig(**{**sizes, **options})))


def save_folder(model: Any, folder: Path, **settings: Any) -> Path:
    """Save a model of transformers, and its video processor."""
    model.save_pretrained(folder)
    kind = (
        hf.VivitVideoProcessor if "vivit" in model.config.model_type else hf.VideoMAEVideoProcessor
    )
    sizes = {"size": {"shortest_edge": 40}, "crop_size": {"height": SIDE, "width": SIDE}}
    kind(**{**sizes, **settings}).save_pretrained(folder)
    return folder


def clips(count: int = 2, frames: int = FRAMES, side: int = SIDE) -> Tensor:
    """Noise, ``(count, T, 3, H, W)`` as transformers takes clips."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, frames, 3, side, side, generator=generator)


def tall(frames: Tensor) -> Tensor:
    """``(B, T, C, H, W)`` -> ``(B, C, T*H, W)``."""
    return frames.transpose(1, 2).flatten(2, 3)


def load(levels: tuple[int, ...] | None = (0,), **fields: Any) -> LoadedModel:
    """Load an entry as the server does."""
    spec = ModelSpec.model_validate({"name": "m", "levels": levels, **fields})
    return load_model(spec, CPU, torch.float32)


@torch.inference_mode()
def assert_same(model: LoadedModel, inputs: Tensor, expected: Tensor) -> None:
    """Compare what the network gives at r=0 for clips ``(B, T, C, H, W)``."""
    assert expected.std() > 0.05
    torch.testing.assert_close(model.network(tall(inputs)), expected, rtol=1e-5, atol=1e-5)
