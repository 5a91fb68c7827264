"""Patch embedding and layer norm for inference, equal to the plain layers within rounding."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.linears import PackedLinear, pack_linear
from tome_core.backends.cpu.row_padding import empty_rows
from tome_core.backends.patch_embedding import cut_patches


class PackedPatches(nn.Module):
    """A patch embedding without overlap as a linear layer on the pixels of each patch."""

    def __init__(self, patch_size: tuple[int, int], linear: PackedLinear) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.linear = linear

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, D, rows, columns)``."""
        patches = cut_patches(images, self.patch_size)
        embedded = _multiply(patches, self.linear)
        grid = embedded.unflatten(0, patches.shape[:3])
        return grid.permute(0, 3, 1, 2)


class PackedTubelets(nn.Module):
    """A `TubeletProjection` by a packed linear layer."""

    def __init__(self, linear: PackedLinear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, tubelets: Tensor) -> Tensor:
        """Project what `cut_tubelets` returns, to ``(B, N, D)``."""
        embedded = _multiply(tubelets, self.linear)
        return embedded.unflatten(0, (len(tubelets), -1))


def _multiply(patches: Tensor, linear: PackedLinear) -> Tensor:
    """Apply ``linear`` to the pixels of each of ``patches``, a view: ``(patches, D)``."""
    patch_count = patches.numel() // linear.in_features
    pixels = empty_rows(patch_count, linear.in_features, patches.dtype)
    pixels.view(patches.shape).copy_(patches)
    return linear(pixels)


def pack_patches(convolution: nn.Conv2d) -> PackedPatches | None:
    """Pack ``convolution``, whose patches do not overlap; None if no packed layer is faster."""
    packed = _pack_product(convolution)
    if packed is None:
        return None
    patch_size = cast(tuple[int, int], convolution.kernel_size)
    return PackedPatches(patch_size, packed)


def pack_tubelets(projection: nn.Conv3d) -> PackedTubelets | None:
    """Pack a `TubeletProjection`; None if no packed layer is faster."""
    packed = _pack_product(projection)
    return None if packed is None else PackedTubelets(packed)


def _pack_product(convolution: nn.Conv2d | nn.Conv3d) -> PackedLinear | None:
    """Pack the product of ``convolution`` and its pixels; None if no packed layer is faster."""
    weight = convolution.weight.detach().flatten(1)
    out_features, in_features = weight.shape
    has_bias = convolution.bias is not None
    linear = nn.Linear(
        in_features,
        out_features,
        has_bias,
        device="meta",  # its own weights are never used
    )
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = cast(nn.Parameter, convolution.bias)
    return pack_linear(linear)


class KernelLayerNorm(nn.Module):
    """A layer norm by `kernels.layer_norm`, with weights in float32."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        weight = norm.weight.detach()
        bias = norm.bias.detach()
        self.weight = weight.float().contiguous()
        self.bias = bias.float().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        return kernels.layer_norm(x, self.weight, self.bias, self.eps)
