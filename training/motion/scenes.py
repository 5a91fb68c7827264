"""Pictures of garments on a background."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.draws import Draw
from training.motion.network import SIZE
from training.motion.poses import Poses, moving, resting

DISTRACTORS = 2  # garments that may rest in a scene
DISTRACTOR_SHARE = 0.5  # of the scenes, for each of them
TEXTURE_SHARE = 0.7  # of the backgrounds that are not flat
TEXTURE = (0.05, 0.3)  # amplitude
COARSENESS = (3, 12)  # cells of a texture along a side
CONTRAST = 0.3  # of a garment with the background's mean, at least, in every channel


@dataclass(frozen=True)
class Layer:
    """Garments to be painted.

    Attributes:
        alpha: how much of a pixel the garment covers, ``(B, 1, T, H, W)``.
        shade: brightness of the garment's picture, ``(B, 1, T, H, W)``.
    """

    alpha: Tensor
    shade: Tensor

    def on(self, picture: Tensor, colour: Tensor) -> Tensor:
        """Paint over ``picture (B, 3, T, H, W)`` in ``colour (B, 3)``."""
        paint = colour[:, :, None, None, None] * (0.4 + 0.6 * self.shade)
        return torch.lerp(picture, paint, self.alpha)


def scene(garments: Tensor, labels: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Return clips ``(B, 3, T, H, W)`` from 0 to 1, and where their one moving garment is.

    Args:
        garments: pictures ``(M, 28, 28)`` from 0 to 1.
        labels: numbers of the classes, ``(B,)``.

    Returns:
        The clips, and how much of each pixel the moving garment covers, ``(B, 1, T, H, W)``.
    """
    ground = draw.uniform(0, 1, 3)
    picture = background(ground, draw)
    for _ in range(DISTRACTORS):
        shown = draw.chance(DISTRACTOR_SHARE * draw.difficulty)[:, None, None, None, None]
        still = layer(pick(garments, draw), resting(draw))
        picture = torch.where(shown, still.on(picture, contrasting(ground, draw)), picture)
    mover = layer(pick(garments, draw), moving(labels, draw))
    return mover.on(picture, contrasting(ground, draw)), mover.alpha


def pick(garments: Tensor, draw: Draw) -> Tensor:
    """Return one of ``garments (M, 28, 28)`` for each clip, half of them mirrored."""
    chosen = garments[draw.integers(len(garments))]
    mirrored = draw.chance(0.5)[:, None, None]
    return torch.where(mirrored, chosen.flip(-1), chosen)


def contrasting(ground: Tensor, draw: Draw) -> Tensor:
    """Return colours ``(B, 3)`` that differ from ``ground`` by CONTRAST or more everywhere."""
    return (ground + draw.uniform(CONTRAST, 1 - CONTRAST, 3)) % 1


def background(ground: Tensor, draw: Draw) -> Tensor:
    """Return backgrounds ``(B, 3, 1, H, W)`` of mean ``ground``: flat, or smooth textures."""
    textures = []
    for cells in COARSENESS:
        coarse = draw.uniform(-1, 1, 3, cells, cells)
        textures.append(F.interpolate(coarse, SIZE, mode="bicubic", align_corners=False))
    textured = draw.chance(TEXTURE_SHARE * draw.difficulty)[:, None, None, None]
    amount = draw.uniform(*TEXTURE, 1, 1, 1) * textured
    texture = torch.lerp(textures[0], textures[1], draw.uniform(0, 1, 1, 1, 1))
    return (ground[:, :, None, None] + amount * texture).clamp(0, 1)[:, :, None]


def layer(garments: Tensor, poses: Poses) -> Layer:
    """Return ``garments (B, 28, 28)`` in their ``poses``, in a frame whose sides wrap round."""
    centres = torch.arange(SIZE, device=garments.device) + 0.5
    across = _around(centres - poses.x[:, :, None])[:, :, None, :]  # (B, T, 1, W)
    down = _around(centres - poses.y[:, :, None])[:, :, :, None]  # (B, T, H, 1)
    half = poses.size[:, :, None, None] / 2
    cos = poses.angle.cos()[:, :, None, None] / half
    sin = poses.angle.sin()[:, :, None, None] / half
    grid = torch.stack([cos * across + sin * down, cos * down - sin * across], dim=-1)
    tall = F.grid_sample(garments[:, None], grid.flatten(1, 2), align_corners=False)
    shade = tall.unflatten(2, (-1, SIZE))
    return Layer(alpha=(4 * shade).clamp(max=1), shade=shade)


def _around(distances: Tensor) -> Tensor:
    """Return the distances on a circle of SIZE, from -SIZE/2 to SIZE/2."""
    return (distances + SIZE / 2) % SIZE - SIZE / 2
