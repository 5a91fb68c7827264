"""A tiny model: 2 blocks by default, images of 32 x 32 pixels, 17 tokens, 3 classes."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

ARGUMENTS = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
}
TABLE = """
[[models]]
name = "tiny"
timm = "vit_tiny_patch16_224"
checkpoint = "tiny.safetensors"
labels = "labels.txt"
img_size = 32
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
interpolation = "bilinear"
crop_pct = 1.0
model_args = { patch_size = 8, embed_dim = 32, depth = 2, num_heads = 2 }
"""


def write_tiny(folder: Path, depth: int = ARGUMENTS["depth"], seed: int = 0) -> Path:
    """Save it with random weights in two formats, and return the path of the models file."""
    torch.manual_seed(seed)
    vit = timm.create_model("vit_tiny_patch16_224", **(ARGUMENTS | {"depth": depth}))
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(vit.state_dict(), folder / "tiny.safetensors")
    torch.save({"model": vit.state_dict()}, folder / "tiny.pth")
    (folder / "labels.txt").write_text("cat\ndog\nfish\n")
    (folder / "models.toml").write_text(TABLE.replace("depth = 2", f"depth = {depth}"))
    return folder / "models.toml"
