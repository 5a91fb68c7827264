"""The models of the day, with random weights: speed needs no trained ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import timm
import torch


@dataclass(frozen=True)
class Model:
    """A timm architecture, and the side of its images in pixels."""

    name: str
    timm: str
    pixels: int = 224
    arguments: dict[str, Any] = field(default_factory=dict)

    def create(self, device: torch.device) -> Any:
        """In float32, in evaluation mode, with weights drawn on ``device``."""
        torch.manual_seed(0)
        try:
            with torch.device(device):
                vit = timm.create_model(self.timm, **self.arguments)
        except Exception:  # some version of timm computes with numbers of the host while it builds
            vit = timm.create_model(self.timm, **self.arguments)
        return vit.to(device).eval().requires_grad_(False)


_TINY = {
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 1,
    "num_classes": 10,
}
TINY = Model("tiny", "vit_tiny_patch16_224", 64, _TINY)
MODELS = {
    "B": Model("B", "vit_base_patch16_224"),
    "S": Model("S", "vit_small_patch16_224"),
    "L": Model("L", "vit_large_patch16_224"),
    "B384": Model("B384", "vit_base_patch16_384", 384),
}
LEVELS = (0, 8, 16)
MIXED = (0, 4, 8, 12, 16)


def r_of(level: str, batch: int) -> int | list[int]:
    """The argument of a call for ``level``: a number, or one per image for ``mixed``."""
    return [MIXED[image % len(MIXED)] for image in range(batch)] if level == "mixed" else int(level)
