"""The networks of these tests: small ones with weights that hide nothing, and a ViT-S."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import timm
import torch

from tests.tome_core.backends.test_padded import with_positions
from tests.tome_core.models import make_vit
from tome_core import MergedViT, patch

# 65 to 69 tokens, so that 16 of them can be merged away in each of the first blocks.
SIZES = {"img_size": 32, "embed_dim": 128, "num_heads": 2}
SMALL: dict[str, dict[str, Any]] = {
    "class-token": {},
    "narrow-heads": {"num_heads": 8},
    "no-prefix": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 4},
    "attention-pool": {"global_pool": "map", "reg_tokens": 2},
    "distilled": {"distilled": True},
    "like-dinov2": {"init_values": 0.3, "qk_norm": True, "reg_tokens": 4, "no_embed_class": True},
}
POSITIONS = ("rotary", "relative", "beit")
LEVELS = (0, 8, 16)
MIXED = (0, 4, 8, 12, 16, 8, 0)


@cache
def _made(name: str) -> MergedViT:
    if name in POSITIONS:
        return with_positions(name)
    if name == "vit-s":
        torch.manual_seed(0)
        return patch(timm.create_model("vit_small_patch16_224").eval().double())
    return patch(make_vit(**{**SIZES, **SMALL[name]}))


def network(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
) -> MergedViT:
    """A network of its own, not optimised, with the same weights every time."""
    return copy.deepcopy(_made(name)).to(device).to(dtype).requires_grad_(False)


def side(name: str) -> int:
    """Of its images, in pixels."""
    return 224 if name == "vit-s" else 16 if name in POSITIONS else 32


def images(name: str, count: int, seed: int = 0) -> torch.Tensor:
    """Noise of unit variance, float64, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, side(name), side(name), generator=generator, dtype=torch.float64)
