"""The network: a small ViT over tubelets, how it starts, and what its input is."""

from __future__ import annotations

import torch
from torch import Tensor

from tome_core.networks.video_vit import VideoViT
from training.motion.detectors import motion_detectors
from training.motion.motions import MOTIONS

FRAMES = 16
SIZE = 64  # height and width of a frame, in pixels
TUBELET = 2  # frames
PATCH = 8  # pixels
# Of pixels from 0 to 1, in every channel.
MEAN = 0.5
STD = 0.25
# Of the initial weights.
LONGEST_WAVE = 100.0
POSITIONS = 0.5  # amplitude


def build(drop_path: float = 0.0) -> VideoViT:
    """Return the network with its initial weights: 512 tokens, 2.5 million parameters."""
    network = VideoViT(
        frames=FRAMES,
        tubelet=TUBELET,
        img_size=SIZE,
        patch_size=PATCH,
        num_classes=len(MOTIONS),
        embed_dim=128,
        depth=12,
        num_heads=4,
        drop_path_rate=drop_path,
    )
    with torch.no_grad():
        network.pos_embed.copy_(POSITIONS * positions(network.embed_dim))
        start_with_motion_detectors(network.patch_embed.proj.weight)
    return network


def positions(width: int) -> Tensor:
    """Return sines and cosines ``(N, width)``: half of time, a quarter each of row and column.

    The positions that timm draws are so small that it takes long to learn what comes after what.
    """
    side = SIZE // PATCH
    times = _waves(FRAMES // TUBELET, width // 2)[:, None, None].expand(-1, side, side, -1)
    rows = _waves(side, width // 4)[None, :, None].expand_as(times[..., : width // 4])
    columns = _waves(side, width // 4)[None, None].expand_as(rows)
    return torch.cat([times, rows, columns], dim=-1).flatten(0, 2)


def _waves(count: int, width: int) -> Tensor:
    """Return sines and cosines ``(count, width)`` of several wavelengths."""
    waves = width // 2
    frequencies = LONGEST_WAVE ** (-torch.arange(waves) / waves)
    angles = torch.arange(count)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def start_with_motion_detectors(filters: Tensor) -> None:
    """Make the first of ``filters (D, C, T, H, W)`` the `motion_detectors`, in grey."""
    detectors = motion_detectors(TUBELET, PATCH)
    channels = filters.shape[1]
    filters[: len(detectors)] = detectors[:, None] / channels


def normalised(pixels: Tensor) -> Tensor:
    """Return the input of the network from ``uint8`` pixels of any shape."""
    return (pixels.float() / 255 - MEAN) / STD
