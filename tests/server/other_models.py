"""Four tiny models of images that are not square, in float32.

One has no classifier, two have other activations, and one merges by another rule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file

SIZE = (64, 32)
WIDTH = 32
TOKENS = 9
_CLASSES = {"bare": 0, "many": 7, "plain": 7, "paired": 7}
_ENTRY = """
[[models]]
name = "{name}"
timm = "vit_tiny_patch16_224"
checkpoint = "{name}.safetensors"
img_size = [64, 32]
num_classes = {classes}
model_args = {{ embed_dim = 32, depth = 2, num_heads = 2 }}
"""
_FIELDS = {
    "bare": "matryoshka = true",
    "many": 'activation = "sigmoid"',
    "plain": 'activation = "none"',
    "paired": 'activation = "none"\nmerging = "pairs"',
}


def write_other_models(folder: Path) -> Path:
    """Save all with random weights; return the path of the models file."""
    text = ""
    for name, classes in _CLASSES.items():
        torch.manual_seed(0)
        vit = _create(classes)
        for parameter in vit.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        save_file(vit.state_dict(), folder / f"{name}.safetensors")
        text += _ENTRY.format(name=name, classes=classes) + _FIELDS[name]
    (folder / "models.toml").write_text(text)
    return folder / "models.toml"


def read_other_model(folder: Path, name: str) -> Any:
    """timm's model of that name."""
    vit = _create(_CLASSES[name])
    vit.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return vit.eval()


def _create(classes: int) -> Any:
    return timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=classes,
        img_size=SIZE,
        embed_dim=WIDTH,
        depth=2,
        num_heads=2,
    )
