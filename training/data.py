"""Fashion-MNIST as tensors, and batched augmentation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from server.commands.datasets import load_fashion_mnist

# Statistics of the 60,000 training images, with pixels from 0 to 1.
MEAN = 0.2860
STD = 0.3530


def load(split: str, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return normalised images ``float32 (M, 1, 28, 28)`` and labels ``int64 (M,)``."""
    images, labels = load_fashion_mnist(split)
    pixels = torch.from_numpy(images.copy()).unsqueeze(1).float().div_(255).sub_(MEAN).div_(STD)
    return pixels.to(device), torch.from_numpy(labels.copy()).long().to(device)


def augment(images: Tensor, generator: torch.Generator, shift: int = 2, hole: int = 8) -> Tensor:
    """Flip half of the images, shift each by up to ``shift`` pixels, erase a square in half.

    Args:
        images: ``(B, 1, H, W)``, normalised. Pixels shifted in from outside are background.
        generator: source of the random numbers, on the device of ``images``.
        shift: maximum shift in pixels.
        hole: maximum side of the erased square in pixels.
    """
    batch, _, height, width = images.shape
    device = images.device

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (batch, 1), generator=generator, device=device)

    all_rows = torch.arange(height, device=device)
    all_cols = torch.arange(width, device=device)
    rows = all_rows.unsqueeze(0) + draw(-shift, shift + 1)
    cols = all_cols.unsqueeze(0) + draw(-shift, shift + 1)
    cols = torch.where(draw(0, 2).bool(), cols, width - 1 - cols)
    inside = ((rows >= 0) & (rows < height)).unsqueeze(2) & (
        (cols >= 0) & (cols < width)
    ).unsqueeze(1)
    index = rows.clamp(0, height - 1).unsqueeze(2) * width + cols.clamp(0, width - 1).unsqueeze(1)
    moved = images.flatten(1).gather(1, index.flatten(1)).view(batch, height, width)

    top = draw(0, height)
    left = draw(0, width)
    side = draw(0, hole + 1) * draw(0, 2)
    in_rows = (all_rows >= top) & (all_rows < top + side)
    in_cols = (all_cols >= left) & (all_cols < left + side)
    keep = inside & ~(in_rows.unsqueeze(2) & in_cols.unsqueeze(1))
    background = -MEAN / STD
    return torch.where(keep, moved, torch.full_like(moved, background)).unsqueeze(1)


def batches(
    images: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of augmented batches in random order. Drop the last partial batch."""
    order = torch.randperm(len(images), generator=generator, device=images.device)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        indices = order[start : start + batch_size]
        yield augment(images[indices], generator), labels[indices]
