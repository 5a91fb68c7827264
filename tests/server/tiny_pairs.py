"""A tiny CLIP and a tiny SigLIP of transformers, both towers with random weights, in folders."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from server.commands.text.command import write_text
from server.commands.text.flags import TextCommand
from tests.server.engine.loading.published import randomise

hf = pytest.importorskip("transformers")

SIDE = 32
WIDTH = 24  # of the space that images share with texts, of CLIP
BIRDS = ("robin", "wren", "magpie", "crow", "barn owl", "jay")
COLOURS = ("red", "blue")
TEMPLATES = ("a photo of a {}.", "{}", "the {} in the garden")
# What the configurations of transformers have where nothing else is said.
MEANS = {"clip": (0.48145466, 0.4578275, 0.40821073), "siglip": (0.5, 0.5, 0.5)}
STDS = {"clip": (0.26862954, 0.26130258, 0.27577711), "siglip": (0.5, 0.5, 0.5)}

# Entries of their folders, of which the last two are the same CLIP.
MODELS = """
[[models]]
name = "clip"
timm = "local-dir:clip"
text = { birds = "clip-birds.safetensors", colours = "clip-colours.safetensors" }

[[models]]
name = "siglip"
timm = "local-dir:siglip"
text = "siglip-birds.safetensors"

[[models]]
name = "cosine"
timm = "local-dir:clip"
text = "clip-birds.safetensors"
activation = "cosine"

[[models]]
name = "features"
timm = "local-dir:clip"

[aliases]
words = "clip"
"""

_START, _END = "<|startoftext|>", "<|endoftext|>"
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": 8,
}


def tokenizer() -> Any:
    """CLIP's, which knows letters alone."""
    letters = [*string.ascii_lowercase, *"."]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), _START, _END]
    return hf.CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


def _text(words: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": len(words),
        "max_position_embeddings": 32,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }


def make_pair(kind: str) -> Any:
    """``clip`` or ``siglip``."""
    text = _text(tokenizer())
    model: Any
    if kind == "clip":
        model = hf.CLIPModel(
            hf.CLIPConfig(vision_config=_VISION, text_config=text, projection_dim=WIDTH)
        )
    else:
        model = hf.SiglipModel(hf.SiglipConfig(vision_config=_VISION, text_config=text))
    randomise(model)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        if kind == "siglip":
            model.logit_bias.fill_(-1.5)
    return model


def save_pair(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def normalised(pixels: npt.NDArray[np.uint8], kind: str) -> Tensor:
    """``uint8 (B, H, W, 3)`` as the model's processor gives it."""
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    mean = torch.tensor(MEANS[kind], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor(STDS[kind], dtype=torch.float64).view(3, 1, 1)
    return ((scaled - mean) / std).float()


def tokens_of(model: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    words = tokenizer()
    if model.config.model_type == "siglip":
        found = words(list(texts), padding="max_length", max_length=32, return_tensors="pt")
        return {"input_ids": found["input_ids"]}
    return dict(words(list(texts), padding=True, return_tensors="pt"))


@torch.no_grad()
def logits_per_image(model: Any, pixel_values: Tensor, texts: Sequence[str]) -> Tensor:
    """The logits of transformers' own class, ``(images, texts)``."""
    found: Tensor = model(pixel_values=pixel_values, **tokens_of(model, texts)).logits_per_image
    return found


def probabilities(model: Any, logits: Tensor) -> Tensor:
    """As the documentation of transformers computes them."""
    return logits.sigmoid() if model.config.model_type == "siglip" else logits.softmax(dim=-1)


def images(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Pictures of the model's own size, ``uint8 (count, H, W, 3)``: nothing is resized."""
    values = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3))
    return values.astype(np.uint8)


def write_pairs(folder: Path) -> Path:
    """Save both with label sets that ``tome-serve text`` writes; return the models file."""
    (folder / "birds.txt").write_text("\n".join(BIRDS) + "\n")
    (folder / "colours.txt").write_text("\n".join(COLOURS))
    for kind in ("clip", "siglip"):
        save_pair(make_pair(kind), folder / kind)
    for kind, name in (("clip", "birds"), ("clip", "colours"), ("siglip", "birds")):
        output = folder / f"{kind}-{name}.safetensors"
        labels = folder / f"{name}.txt"
        write_text(
            TextCommand(model=str(folder / kind), labels=labels, output=output, device="cpu")
        )
    (folder / "models.toml").write_text(MODELS)
    return folder / "models.toml"
