"""Layers for inference, each made from the plain layer that it replaces and equal to it within rounding."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from tome_core import native
from tome_core.linears import PackedLinear, pack_linear
from tome_core.rows import empty_rows


class PackedPatches(nn.Module):
    """The convolution of a patch embedding, whose patches do not overlap, as a linear layer on their pixels."""

    def __init__(self, patch: tuple[int, int], linear: PackedLinear) -> None:
        super().__init__()
        self.patch, self.linear = patch, linear

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, D, rows, columns)``."""
        patches = cut_patches(images, self.patch)
        pixels = empty_rows(patches.shape[:3].numel(), self.linear.in_features, images.dtype)
        pixels.view(patches.shape).copy_(patches)
        return self.linear(pixels).view(*patches.shape[:3], -1).permute(0, 3, 1, 2)


class MatrixPatches(nn.Module):
    """The same for a GPU, as one plain matrix product: cuDNN makes a plan of a convolution for every batch size."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.patch = cast(tuple[int, int], convolution.kernel_size)
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, D, rows, columns)``."""
        pixels = cut_patches(images, self.patch).flatten(3)
        return F.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def cut_patches(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Patches of ``(height, width)``, without what is left at the right and at the bottom.

    ``(B, C, H, W)`` -> ``(B, rows, columns, C, height, width)``, a view.
    """
    height, width = patch
    rows, columns = images.shape[2] // height, images.shape[3] // width
    images = images[:, :, : rows * height, : columns * width]
    return images.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)


def pack_patches(convolution: nn.Conv2d) -> PackedPatches | None:
    """``convolution``, whose patches do not overlap, made ready; None where `pack_linear` has nothing faster."""
    weight, bias = convolution.weight.detach(), convolution.bias
    linear = nn.Linear(weight[0].numel(), len(weight), bias is not None, device="meta")
    linear.weight, linear.bias = nn.Parameter(weight.flatten(1), requires_grad=False), cast(nn.Parameter, bias)
    packed = pack_linear(linear)
    return None if packed is None else PackedPatches(cast(tuple[int, int], convolution.kernel_size), packed)


class KernelLayerNorm(nn.Module):
    """Layer norm by the kernel of `tome_core.native`; weights in float32."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = (part.detach().float().contiguous() for part in (norm.weight, norm.bias))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        return native.layer_norm(x, self.weight, self.bias, self.eps)
