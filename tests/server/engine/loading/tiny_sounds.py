"""Tiny models of sound with random weights, as their authors, timm and transformers save them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from server.catalog.entries import ModelSpec
from server.engine.loading.model_loader import LoadedModel, load_model
from tests.server.engine.loading.published import randomise

pytest.importorskip("soundfile")
pytest.importorskip("soxr")
hf = pytest.importorskip("transformers")

CPU = torch.device("cpu")
FRAMES = 64
WIDTH = 32
CLASSES = 3
LABELS = {0: "bell", 1: "dog", 2: "rain"}
# Arguments of timm that make an architecture small.
SMALL: dict[str, Any] = {"embed_dim": WIDTH, "depth": 2, "num_heads": 2}
AST: dict[str, Any] = {"timm": "ast_tiny_patch16", "model_args": SMALL}
AUDIOMAE: dict[str, Any] = {
    "timm": "vit_tiny_patch16_224",
    "modality": "audio",
    "model_args": SMALL,
}


def spectrograms(*size: int, count: int = 2) -> Tensor:
    """Noise, ``(count, 1, H, W)``."""
    generator = torch.Generator().manual_seed(0)
    return 0.5 * torch.randn(count, 1, *size, generator=generator)


def transformers_ast(**options: Any) -> Any:
    """An AST of transformers with three labels."""
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 80,
        "max_length": FRAMES,
        "id2label": LABELS,
    }
    kind = options.pop("kind", hf.ASTForAudioClassification)
    return randomise(kind(hf.ASTConfig(**{**sizes, **options})))


def save_folder(model: Any, folder: Path, **settings: Any) -> Path:
    """Save a model of transformers, and its feature extractor."""
    model.save_pretrained(folder)
    extractor = hf.ASTFeatureExtractor(**{"max_length": model.config.max_length, **settings})
    extractor.save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


class AuthorsAst(nn.Module):
    """AST as its authors build it: a distilled ViT of timm, with overlapping patches."""

    def __init__(
        self,
        frames: int = FRAMES,
        stride: tuple[int, int] = (10, 10),
        patch: tuple[int, int] = (16, 16),
        average: bool = False,
    ) -> None:
        super().__init__()
        self.average = average
        self.v: Any = VisionTransformerDistilled(img_size=32, in_chans=1, **SMALL)
        self.v.patch_embed.proj = nn.Conv2d(1, WIDTH, kernel_size=patch, stride=stride)
        rows = (128 - patch[0]) // stride[0] + 1
        columns = (frames - patch[1]) // stride[1] + 1
        self.v.pos_embed = nn.Parameter(torch.zeros(1, 2 + rows * columns, WIDTH))
        self.mlp_head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 1, mel, frames)`` -> ``(B, classes)``."""
        v = self.v
        patches = v.patch_embed.proj(x).flatten(2).transpose(1, 2)
        prefix = torch.cat([v.cls_token, v.dist_token], dim=1).expand(len(x), -1, -1)
        tokens = torch.cat([prefix, patches], dim=1) + v.pos_embed
        tokens = v.norm(v.blocks(tokens))
        if self.average:
            return self.mlp_head(tokens[:, 2:].mean(dim=1))
        return self.mlp_head((tokens[:, 0] + tokens[:, 1]) / 2)


def authors_ast(**options: Any) -> AuthorsAst:
    model = AuthorsAst(**options)
    randomise(model)
    return model


def save_authors(model: nn.Module, path: Path, **more: Tensor) -> Path:
    """Save as the authors do: the state dict of a ``DataParallel``."""
    torch.save({**nn.DataParallel(model).state_dict(), **more}, path)
    return path


def timm_audiomae(frames: int = FRAMES, **options: Any) -> Any:
    """AudioMAE's geometry in timm."""
    arguments = {
        "img_size": (frames, 128),
        "in_chans": 1,
        "num_classes": CLASSES,
        "global_pool": "avg",
    }
    return randomise(timm.create_model("vit_tiny_patch16_224", **{**arguments, **SMALL, **options}))


def load(**fields: Any) -> LoadedModel:
    """Load an entry as the server does."""
    spec = ModelSpec.model_validate({"name": "m", **fields})
    return load_model(spec, CPU, torch.float32, levels=(0,))


def assert_same(model: LoadedModel, inputs: Tensor, expected: Tensor) -> None:
    """Compare the logits at r=0."""
    with torch.inference_mode():
        torch.testing.assert_close(model.network(inputs), expected, rtol=1e-4, atol=1e-5)
