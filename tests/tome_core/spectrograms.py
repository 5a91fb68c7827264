"""Small spectrogram networks, and inputs that look like normalised log-mel values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.tome_core.models import CLASSES, DEPTH, randomise
from tome_core.networks.spectrogram_vit import SpectrogramViT

MEL_BINS = 16
FRAMES = 22  # 3 rows and 5 columns of patches


def make_ast(
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> SpectrogramViT:
    """A small AST in evaluation mode, of 15 patches unless ``options`` say otherwise."""
    sizes = {
        "img_size": (MEL_BINS, FRAMES),
        "patch_size": 6,
        "stride": (5, 4),
        "embed_dim": 16,
        "depth": DEPTH,
        "num_heads": 2,
        "mlp_ratio": 2.0,
    }
    vit = SpectrogramViT(**{**sizes, "num_classes": CLASSES, **options})
    randomise(vit, seed)
    return vit.eval().to(dtype)


def make_spectrograms(
    batch: int,
    size: tuple[int, int] = (MEL_BINS, FRAMES),
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Noise of the variance of normalised log-mel values, ``(B, 1, mel bins, frames)``."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 1, *size, generator=generator, dtype=torch.float64)
    return (0.5 * noise).to(dtype)
