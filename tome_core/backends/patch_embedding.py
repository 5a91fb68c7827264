"""Patch embedding without a convolution: patches are cut out and multiplied."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


class MatrixPatches(nn.Module):
    """A patch embedding as one matrix product.

    For a convolution, cuDNN would make a plan for every batch size.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.patch_size = cast(tuple[int, int], convolution.kernel_size)
        self.stride = cast(tuple[int, int], convolution.stride)
        self.weight = convolution.weight
        self.bias = convolution.bias

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, D, rows, columns)``."""
        patches = self._cut(images)
        pixels = patches.flatten(3)  # (B, rows, columns, C * height * width)
        weight = self.weight.flatten(1)
        embedded = F.linear(pixels, weight, self.bias)
        return embedded.permute(0, 3, 1, 2)

    def _cut(self, images: Tensor) -> Tensor:
        if self.stride == self.patch_size:
            return cut_patches(images, self.patch_size)
        return cut_overlapping_patches(images, self.patch_size, self.stride)


def cut_patches(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut ``images (B, C, H, W)`` into patches of ``patch_size (height, width)``.

    Pixels at the right and at the bottom that do not fill a patch are dropped.

    Returns:
        ``(B, rows, columns, C, height, width)``, a view.
    """
    height, width = patch_size
    _, _, image_height, image_width = images.shape
    rows = image_height // height
    columns = image_width // width
    cropped = images[:, :, : rows * height, : columns * width]
    patches = cropped.unflatten(3, (columns, width))
    patches = patches.unflatten(2, (rows, height))  # (B, C, rows, height, columns, width)
    return patches.permute(0, 2, 4, 1, 3, 5)


def cut_overlapping_patches(
    images: Tensor,
    patch_size: tuple[int, int],
    stride: tuple[int, int],
) -> Tensor:
    """Cut ``images`` as `cut_patches`, with patches ``stride (rows, columns)`` apart."""
    height, width = patch_size
    down, right = stride
    in_rows = images.unfold(2, height, down)  # (B, C, rows, W, height)
    patches = in_rows.unfold(3, width, right)  # (B, C, rows, columns, height, width)
    return patches.permute(0, 2, 3, 1, 4, 5)
