"""Clips of moving garments, made as they are needed: the same seed makes the same clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from server.commands.datasets import load_fashion_mnist
from training.draws import Draw
from training.motion.motions import MOTIONS
from training.motion.network import PATCH, TUBELET
from training.motion.recording import recorded
from training.motion.scenes import scene

HELD_OUT_SEED = 1_000_000_007
PORTION = 250  # held-out clips made at a time


def garments(split: str, device: torch.device | None = None) -> Tensor:
    """Return the pictures ``(M, 28, 28)`` of ``train`` or ``test``, from 0 to 1."""
    images, _ = load_fashion_mnist(split)
    return torch.from_numpy(images.copy()).to(device).float() / 255


@dataclass(frozen=True)
class Clips:
    """Clips in which garments move.

    Attributes:
        pixels: ``uint8 (B, 3, T*H, W)``, the frames below each other.
        labels: numbers of their classes, ``(B,)``.
        cover: how much of each tubelet the moving garment covers, ``(B, N)`` from 0 to 1.
    """

    pixels: Tensor
    labels: Tensor
    cover: Tensor


def clips(
    pictures: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    difficulty: float = 1.0,
) -> Clips:
    """Return clips in which garments move as ``labels (B,)`` say.

    Args:
        pictures: of garments, ``(M, 28, 28)`` from 0 to 1.
        generator: source of the random numbers, on the device of the others. What is drawn does not
            depend on the labels.
        difficulty: from 0, all garments begin alike on clean flat backgrounds, to 1.
    """
    draw = Draw(len(labels), generator, difficulty)
    scenes, alpha = scene(pictures, labels, draw)
    cover = F.avg_pool3d(alpha, (TUBELET, PATCH, PATCH)).flatten(1)
    return Clips(recorded(scenes, draw), labels, cover)


def training_batch(
    pictures: Tensor,
    batch: int,
    generator: torch.Generator,
    difficulty: float = 1.0,
) -> Clips:
    """Return ``batch`` clips of random classes; see `clips`."""
    labels = torch.randint(len(MOTIONS), (batch,), generator=generator, device=generator.device)
    return clips(pictures, labels, generator, difficulty)


def held_out(pictures: Tensor, count: int) -> Iterator[Clips]:
    """Yield ``count`` clips in portions, the classes in turn."""
    for start in range(0, count, PORTION):
        yield held_out_portion(pictures, start, min(PORTION, count - start))


def held_out_portion(pictures: Tensor, start: int, count: int) -> Clips:
    """Return ``count`` held-out clips from number ``start`` on, a multiple of PORTION."""
    device = pictures.device
    labels = torch.arange(start, start + count, device=device) % len(MOTIONS)
    generator = torch.Generator(device).manual_seed(HELD_OUT_SEED + start)
    return clips(pictures, labels, generator)
