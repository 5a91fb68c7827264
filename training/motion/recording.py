"""What a camera and a video codec do to a clip: flicker, noise, blur, and coarse blocks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.draws import Draw
from training.motion.network import FRAMES

FLICKER = 0.12  # largest standard deviation of the brightness of the frames
NOISE = 0.06  # largest standard deviation of pixels
BLUR = 0.2  # largest weight of each of a pixel's two neighbours in a row
BLOCK = 8  # pixels
COARSENESS = 0.35  # largest step of a block's coefficients, which grow with the frequency
# Luma and two colour differences of ITU-R BT.601, from red, green and blue.
LUMA = (
    (0.299, 0.587, 0.114),
    (-0.168736, -0.331264, 0.5),
    (0.5, -0.418688, -0.081312),
)


def recorded(clips: Tensor, draw: Draw) -> Tensor:
    """Return ``uint8 (B, 3, T*H, W)``, the frames below each other, from ``(B, 3, T, H, W)``."""
    damage = draw.difficulty
    gain = 1 + draw.uniform(0, damage * FLICKER, 1) * draw.normal(FRAMES)
    clips = clips * gain[:, None, :, None, None]
    clips = clips + draw.uniform(0, damage * NOISE, 1, 1, 1, 1) * draw.normal(*clips.shape[1:])
    clips = blurred(clips, draw.uniform(0, damage * BLUR))
    pixels = compressed(clips.flatten(2, 3), draw.uniform(0, damage * COARSENESS))
    return (255 * pixels).round().clamp(0, 255).byte()


def blurred(clips: Tensor, weights: Tensor) -> Tensor:
    """Return ``clips (B, C, T, H, W)``, each pixel mixed with its neighbours.

    Args:
        weights: of each of the two neighbours along an axis, ``(B,)``.
    """
    side = weights[:, None, None, None, None]
    for axis in (3, 4):
        length = clips.shape[axis]
        ends = (clips.narrow(axis, 0, 1), clips, clips.narrow(axis, length - 1, 1))
        padded = torch.cat(ends, dim=axis)
        neighbours = padded.narrow(axis, 0, length) + padded.narrow(axis, 2, length)
        clips = torch.lerp(clips, neighbours / 2, 2 * side)
    return clips


def compressed(pictures: Tensor, steps: Tensor) -> Tensor:
    """Return ``pictures (B, 3, H, W)`` with colour at half resolution and coarse coefficients.

    It is what codecs of video do to a frame: the cosine transform of blocks, rounded to multiples
    of a step, larger for higher frequencies.

    Args:
        steps: at the highest frequency, ``(B,)``.
    """
    to_luma = torch.tensor(LUMA)
    to_colours = to_luma.inverse().to(pictures.device)
    to_luma = to_luma.to(pictures.device)
    planes = torch.einsum("dc,bchw->bdhw", to_luma, pictures)
    colour = F.interpolate(F.avg_pool2d(planes[:, 1:], 2), scale_factor=2)
    planes = rounded(torch.cat([planes[:, :1], colour], dim=1), steps)
    return torch.einsum("cd,bdhw->bchw", to_colours, planes)


def rounded(planes: Tensor, steps: Tensor) -> Tensor:
    """Return ``planes (B, C, H, W)`` with their blocks' coefficients rounded, ``steps (B,)``."""
    cosines = cosine_transform(planes.device)
    blocks = planes.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))  # (B, C, rows, 8, cols, 8)
    blocks = blocks.transpose(3, 4)
    coefficients = cosines @ blocks @ cosines.T
    frequency = torch.arange(BLOCK, device=planes.device)
    growth = (1 + frequency[:, None] + frequency) / (2 * BLOCK - 1)
    step = (steps[:, None, None] * growth)[:, None, None, None].clamp(min=1e-4)
    coefficients = (coefficients / step).round() * step
    blocks = cosines.T @ coefficients @ cosines
    return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def cosine_transform(device: torch.device) -> Tensor:
    """Return the orthonormal cosine transform (DCT-II) of BLOCK numbers, ``(BLOCK, BLOCK)``."""
    place = torch.arange(BLOCK, device=device) + 0.5
    frequency = torch.arange(BLOCK, device=device)
    waves = torch.cos(math.pi / BLOCK * frequency[:, None] * place)
    waves[0] /= math.sqrt(2)
    return waves * math.sqrt(2 / BLOCK)
