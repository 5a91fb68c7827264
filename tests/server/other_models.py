"""Four tiny models of images that are not square, in float32.

One has no classifier, two have other activations, and one merges by another rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file

SIZE = (64, 32)
WIDTH = 32
TOKENS = 9
_ENTRY = """
[[models]]
name = "{name}"
timm = "vit_tiny_patch16_224"
checkpoint = "{name}.safetensors"
img_size = [64, 32]
num_classes = {classes}
model_args = {{ embed_dim = 32, depth = 2, num_heads = 2 }}
{fields}
"""


@dataclass(frozen=True)
class OtherModel:
    """What one has: the number of classes, and further fields of its entry."""

    classes: int
    fields: str


OTHERS = {
    "bare": OtherModel(0, "matryoshka = true"),
    "many": OtherModel(7, 'activation = "sigmoid"'),
    "plain": OtherModel(7, 'activation = "none"'),
    "paired": OtherModel(7, 'activation = "none"\nmerging = "pairs"'),
}


def write_other_models(folder: Path, names: Iterable[str] = OTHERS) -> Path:
    """Save those of ``names`` with random weights; return the path of the models file."""
    text = ""
    for name in names:
        model = OTHERS[name]
        torch.manual_seed(0)
        vit = _create(model.classes)
        for parameter in vit.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        save_file(vit.state_dict(), folder / f"{name}.safetensors")
        text += _ENTRY.format(name=name, classes=model.classes, fields=model.fields)
    (folder / "models.toml").write_text(text)
    return folder / "models.toml"


def read_other_model(folder: Path, name: str) -> Any:
    """timm's model of that name."""
    vit = _create(OTHERS[name].classes)
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
