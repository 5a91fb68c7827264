"""The networks of these tests: small ones with random weights, also of sound and video; a ViT-S."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import timm
import torch

from tests.tome_core.backends.test_padded import with_positions
from tests.tome_core.clips import make_video_vit
from tests.tome_core.models import make_vit
from tests.tome_core.spectrograms import make_ast
from tome_core import MergedViT, patch

# 65 to 69 tokens, so that each of the first blocks can merge 16 of them.
SIZES: dict[str, Any] = {
    "img_size": 32,
    "embed_dim": 128,
    "num_heads": 2,
}
SMALL: dict[str, dict[str, Any]] = {
    "class-token": {},
    "narrow-heads": {"num_heads": 8},
    "no-prefix": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 4},
    "attention-pool": {"global_pool": "map", "reg_tokens": 2},
    "distilled": {"distilled": True},
    "like-dinov2": {
        "init_values": 0.3,
        "qk_norm": True,
        "reg_tokens": 4,
        "no_embed_class": True,
    },
}
POSITIONS = ("rotary", "relative", "beit")
SOUND = ("spectrogram",)
SPECTROGRAM = (32, 98)  # mel bins, frames: 80 overlapping patches
VIDEO = ("clips",)
CLIP: dict[str, Any] = {"frames": 4, "img_size": (16, 32), "class_token": True}  # 64 tubelets
LEVELS = (0, 8, 16)
MIXED = (0, 4, 8, 12, 16, 8, 0)


@cache
def _make(name: str) -> MergedViT:
    if name in POSITIONS:
        return with_positions(name)
    if name in SOUND:
        sizes = {**SIZES, "img_size": SPECTROGRAM}
        return patch(make_ast(patch_size=8, stride=6, **sizes))
    if name in VIDEO:
        return patch(make_video_vit(**{**SIZES, **CLIP}))
    if name == "vit-s":
        torch.manual_seed(0)
        vit = timm.create_model("vit_small_patch16_224")
        return patch(vit.eval().double())
    arguments = {**SIZES, **SMALL[name]}
    return patch(make_vit(**arguments))


def network(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> MergedViT:
    """Return a new plain network, with the same weights at every call."""
    plain = copy.deepcopy(_make(name))
    return plain.to(device).to(dtype).requires_grad_(False)


def image_shape(name: str) -> tuple[int, int, int]:
    """``(C, H, W)``."""
    if name in SOUND:
        return (1, *SPECTROGRAM)
    if name in VIDEO:
        height, width = CLIP["img_size"]
        return (3, CLIP["frames"] * height, width)
    side = 32
    if name == "vit-s":
        side = 224
    elif name in POSITIONS:
        side = 16
    return (3, side, side)


def images(name: str, count: int, seed: int = 0) -> torch.Tensor:
    """Return noise of unit variance, float64, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *image_shape(name))
    return torch.randn(shape, generator=generator, dtype=torch.float64)
