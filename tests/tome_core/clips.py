"""Small networks of video, and clips for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.tome_core.models import CLASSES, DEPTH, randomise
from tome_core.networks.video_vit import VideoViT

FRAMES = 4
HEIGHT = 8
WIDTH = 12
GRID = (4, 3)  # two times of two rows, and three columns: 12 tubelets of 2x4x4


def make_video_vit(
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> VideoViT:
    """A small network in evaluation mode, of 12 tubelets unless ``options`` say otherwise."""
    sizes = {
        "frames": FRAMES,
        "tubelet": 2,
        "img_size": (HEIGHT, WIDTH),
        "patch_size": 4,
        "embed_dim": 16,
        "depth": DEPTH,
        "num_heads": 2,
        "mlp_ratio": 2.0,
    }
    vit = VideoViT(**{**sizes, "num_classes": CLASSES, **options})
    randomise(vit, seed)
    return vit.eval().to(dtype)


def make_clips(
    batch: int,
    size: tuple[int, int] = (FRAMES * HEIGHT, WIDTH),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Noise of unit variance, as tall pictures ``(B, 3, T*H, W)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64).to(dtype)
