"""Layers for inference on a CPU, each made from the plain layer that it replaces and equal to it within rounding."""

from __future__ import annotations

import copy
import logging
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tome_core import native
from tome_core.rows import with_room

_log = logging.getLogger(__name__)


class PackedLinear(nn.Module):
    """A linear layer whose weights are packed once, in the order in which oneDNN reads them.

    Args:
        gelu: apply GELU to the result, in the same pass.
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.gelu = linear.in_features, linear.out_features, gelu
        self.bias = linear.bias
        # Neither parameter nor buffer: an opaque oneDNN tensor takes part in neither state_dict nor .to().
        self.kernel = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())

    def __deepcopy__(self, memo: dict[int, object]) -> PackedLinear:
        copied = copy.copy(self)  # which shares the packed weights: nothing can change them, or copy them
        copied._parameters = copy.deepcopy(self._parameters, memo)
        return copied

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` -> ``(..., out)``."""
        rows, activation = x.flatten(0, -2), "gelu" if self.gelu else "none"
        out = torch.ops.mkldnn._linear_pointwise(with_room(rows), self.kernel, self.bias, activation, [], "none")
        return cast(Tensor, out[: len(rows)].unflatten(0, x.shape[:-1]))


class PackedPatches(nn.Module):
    """The convolution of a patch embedding, whose patches do not overlap, as a `PackedLinear` on their pixels."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight, bias = convolution.weight.detach(), convolution.bias
        self.patch = cast(tuple[int, int], convolution.kernel_size)
        linear = nn.Linear(weight[0].numel(), len(weight), bias is not None, device="meta")
        linear.weight, linear.bias = nn.Parameter(weight.flatten(1), requires_grad=False), cast(nn.Parameter, bias)
        self.linear = PackedLinear(linear)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, D, rows, columns)``."""
        height, width = self.patch
        rows, columns = images.shape[2] // height, images.shape[3] // width
        images = images[:, :, : rows * height, : columns * width]
        pixels = images.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)
        return self.linear(pixels.flatten(3).flatten(0, 2)).view(len(images), rows, columns, -1).permute(0, 3, 1, 2)


class KernelLayerNorm(nn.Module):
    """Layer norm by the kernel of `tome_core.native`; weights in float32."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = (part.detach().float().contiguous() for part in (norm.weight, norm.bias))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` -> ``(..., D)``."""
        return native.layer_norm(x, self.weight, self.bias, self.eps)


@lru_cache
def packs(dtype: torch.dtype) -> bool:
    """Whether `PackedLinear` works here: tried once, on a small layer, against the plain one.

    It rests on operators of torch that are not public. Where they are missing or wrong, the log says so, once.
    """
    if dtype not in native.DTYPES or not torch.backends.mkldnn.is_available():
        return False
    linear = nn.Linear(32, 16).requires_grad_(False)
    linear.weight.copy_(torch.linspace(-1, 1, 512).view(16, 32))
    linear.bias.copy_(torch.linspace(1, -1, 16))
    linear, x = linear.to(dtype), torch.linspace(-1, 1, 96).view(3, 32).to(dtype)
    try:
        got = PackedLinear(linear, gelu=True)(x)
    except (RuntimeError, AttributeError) as error:
        _log.warning("oneDNN's packed linear layers cannot be used, PyTorch's are: %s", error)
        return False
    if torch.allclose(got, F.gelu(linear(x)), rtol=1e-2, atol=1e-2):
        return True
    _log.warning("oneDNN's packed linear layers are wrong here in %s; PyTorch's are used", dtype)
    return False
