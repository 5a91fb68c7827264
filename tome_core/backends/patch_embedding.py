"""Patch embedding without a convolution: patches that do not overlap, cut out and multiplied."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


class MatrixPatches(nn.Module):
    """A patch embedding as one matrix product: cuDNN would plan a convolution for every batch size."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.patch = cast(tuple[int, int], convolution.kernel_size)
        self.weight = convolution.weight
        self.bias = convolution.bias

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, D, rows, columns)``."""
        pixels = cut_patches(images, self.patch).flatten(3)
        return F.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def cut_patches(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Patches of ``(height, width)``, without what is left at the right and at the bottom.

    ``(B, C, H, W)`` -> ``(B, rows, columns, C, height, width)``, a view.
    """
    height, width = patch
    rows = images.shape[2] // height
    columns = images.shape[3] // width
    images = images[:, :, : rows * height, : columns * width]
    return (
        images.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)
    )
