"""The networks: the served ViT at any patch size, and the convolutional teacher."""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

VIT = {
    "img_size": 28,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 128,
    "depth": 12,
    "num_heads": 4,
}


def vit(patch_size: int) -> VisionTransformer:
    """Return the bundled architecture. ``patch_size=2`` gives 197 tokens, as ViT/16 at 224 px."""
    return VisionTransformer(patch_size=patch_size, **VIT)


def refine(weights: dict[str, Tensor], patch_size: int) -> dict[str, Tensor]:
    """Resample patch and position embeddings of a ViT with larger patches to ``patch_size``."""
    weights = dict(weights)
    grid = VIT["img_size"] // patch_size
    weights["patch_embed.proj.weight"] = resample_patch_embed(
        weights["patch_embed.proj.weight"].float(), [patch_size, patch_size]
    )
    weights["pos_embed"] = resample_abs_pos_embed(
        weights["pos_embed"].float(), [grid, grid], num_prefix_tokens=1
    )
    return weights


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, H, W)`` to ``(B, outputs, H / stride, W / stride)``."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Teacher(nn.Sequential):
    """A residual network of 13 convolutions, the teacher of the ViT (DeiT, arXiv 2012.12877)."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(1, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            ResidualBlock(width, width, 1),
            ResidualBlock(width, width, 1),
            ResidualBlock(width, 2 * width, 2),
            ResidualBlock(2 * width, 2 * width, 1),
            ResidualBlock(2 * width, 4 * width, 2),
            ResidualBlock(4 * width, 4 * width, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, num_classes),
        )
