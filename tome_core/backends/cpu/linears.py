"""Linear layers for inference on a CPU, each made from a plain one and equal to it within rounding."""

from __future__ import annotations

import copy
import logging
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.row_padding import with_room

_log = logging.getLogger(__name__)


class PackedLinear(nn.Module):
    """A linear layer whose weights are packed once, in the order in which they are read.

    Packed, they are neither parameters nor buffers: they take part in neither ``state_dict`` nor
    ``.to()``.

    Args:
        gelu: apply GELU to the result, in the same pass.
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.gelu = gelu
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` -> ``(..., out)``."""
        return self.multiply(x.flatten(0, -2)).unflatten(0, x.shape[:-1])

    def multiply(self, rows: Tensor) -> Tensor:
        """``(T, in)`` -> ``(T, out)``."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, object]) -> PackedLinear:
        copied = copy.copy(self)  # which shares the packed weights: nothing can change them
        copied._parameters = copy.deepcopy(self._parameters, memo)
        return copied


class KernelLinear(PackedLinear):
    """A linear layer by the kernel of `tome_core.backends.cpu.kernels`: each row by itself, whichever rows are beside it."""

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__(linear, gelu)
        self.packed = kernels.pack_linear(linear.weight.detach(), self.bias)

    def multiply(self, rows: Tensor) -> Tensor:
        """``(T, in)`` -> ``(T, out)``."""
        return kernels.linear(rows, self.packed, self.gelu)


class KernelMlp(nn.Module):
    """Two layers with GELU between them; of large batches the hidden values are never all there at once."""

    def __init__(self, fc1: KernelLinear, fc2: KernelLinear) -> None:
        super().__init__()
        if fc2.in_features != fc1.out_features:
            raise ValueError(f"{fc1.out_features} outputs are no {fc2.in_features} inputs")
        self.fc1 = fc1
        self.fc2 = fc2

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` -> ``(..., out)``."""
        return kernels.mlp(x.flatten(0, -2), self.fc1.packed, self.fc2.packed).unflatten(
            0, x.shape[:-1]
        )


class OneDnnLinear(PackedLinear):
    """A linear layer by operators of torch that are not public, on weights in oneDNN's own layout."""

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__(linear, gelu)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())

    def multiply(self, rows: Tensor) -> Tensor:
        """``(T, in)`` -> ``(T, out)``."""
        activation = "gelu" if self.gelu else "none"
        out = torch.ops.mkldnn._linear_pointwise(
            with_room(rows), self.packed, self.bias, activation, [], "none"
        )
        return cast(Tensor, out[: len(rows)])


def pack_linear(linear: nn.Linear) -> PackedLinear | None:
    """``linear`` as the fastest layer that works here, or None where that is ``linear`` itself."""
    if kernels.multiplies_fastest(linear.weight):
        return KernelLinear(linear)
    return OneDnnLinear(linear) if onednn_works(linear.weight.dtype) else None


@lru_cache
def onednn_works(dtype: torch.dtype) -> bool:
    """Whether `OneDnnLinear` does: tried once, on a small layer, against the plain one; if not, the log says so."""
    if dtype not in kernels.DTYPES or not torch.backends.mkldnn.is_available():
        return False
    linear = nn.Linear(32, 16).requires_grad_(False)
    linear.weight.copy_(torch.linspace(-1, 1, 512).view(16, 32))
    linear.bias.copy_(torch.linspace(1, -1, 16))
    linear = linear.to(dtype)
    x = torch.linspace(-1, 1, 96).view(3, 32).to(dtype)
    try:
        got = OneDnnLinear(linear, gelu=True)(x)
    except (RuntimeError, AttributeError) as error:
        _log.warning("oneDNN's packed linear layers cannot be used, PyTorch's are: %s", error)
        return False
    if torch.allclose(got, F.gelu(linear(x)), rtol=1e-2, atol=1e-2):
        return True
    _log.warning("oneDNN's packed linear layers are wrong here in %s; PyTorch's are used", dtype)
    return False
