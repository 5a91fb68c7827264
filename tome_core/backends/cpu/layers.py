"""Layers for inference, each made from the plain layer that it replaces and equal to it within rounding."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.linears import PackedLinear, pack_linear
from tome_core.backends.cpu.row_padding import empty_rows
from tome_core.backends.patch_embedding import cut_patches


class PackedPatches(nn.Module):
    """The convolution of a patch embedding, whose patches do not overlap, as a linear layer on their pixels."""

    def __init__(self, patch: tuple[int, int], linear: PackedLinear) -> None:
        super().__init__()
        self.patch = patch
        self.linear = linear

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, D, rows, columns)``."""
        patches = cut_patches(images, self.patch)
        pixels = empty_rows(patches.shape[:3].numel(), self.linear.in_features, images.dtype)
        pixels.view(patches.shape).copy_(patches)
        return self.linear(pixels).view(*patches.shape[:3], -1).permute(0, 3, 1, 2)


def pack_patches(convolution: nn.Conv2d) -> PackedPatches | None:
    """``convolution``, whose patches do not overlap, made ready; None where `pack_linear` has nothing faster."""
    weight = convolution.weight.detach()
    bias = convolution.bias
    linear = nn.Linear(weight[0].numel(), len(weight), bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.flatten(1), requires_grad=False)
    linear.bias = cast(nn.Parameter, bias)
    packed = pack_linear(linear)
    return (
        None
        if packed is None
        else PackedPatches(cast(tuple[int, int], convolution.kernel_size), packed)
    )


class KernelLayerNorm(nn.Module):
    """Layer norm by the kernel of `tome_core.backends.cpu.kernels`; weights in float32."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = (
            part.detach().float().contiguous() for part in (norm.weight, norm.bias)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        return kernels.layer_norm(x, self.weight, self.bias, self.eps)
