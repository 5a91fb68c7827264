"""Linear layers for inference on a CPU, equal to the plain layers within rounding."""

from __future__ import annotations

import copy
import logging
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.row_padding import pad_rows

_log = logging.getLogger(__name__)
_TEST_TOLERANCE = 1e-2  # bfloat16 rounds to 2^-9


class PackedLinear(nn.Module):
    """A linear layer whose weights are packed once, in the order in which they are read.

    "Packed" here means reordered weights; the packed buffer of tokens is another thing. Packed
    weights are neither parameters nor buffers: ``state_dict`` and ``.to()`` ignore them.

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
        rows = x.flatten(0, -2)
        out = self.multiply(rows)
        return out.unflatten(0, x.shape[:-1])

    def multiply(self, rows: Tensor) -> Tensor:
        """``(T, in)`` -> ``(T, out)``."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, object]) -> PackedLinear:
        copied = copy.copy(self)  # shares the packed weights, which are immutable
        copied._parameters = copy.deepcopy(self._parameters, memo)
        return copied


class KernelLinear(PackedLinear):
    """A linear layer by `kernels.linear`: the result for a row is independent of the others."""

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__(linear, gelu)
        self.packed = kernels.pack_linear(linear.weight.detach(), self.bias)

    def multiply(self, rows: Tensor) -> Tensor:
        """``(T, in)`` -> ``(T, out)``."""
        return kernels.linear(rows, self.packed, self.gelu)


class OneDnnLinear(PackedLinear):
    """A linear layer by private operators of torch, on weights in oneDNN's own layout."""

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__(linear, gelu)
        weight = linear.weight.detach().contiguous()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def multiply(self, rows: Tensor) -> Tensor:
        """``(T, in)`` -> ``(T, out)``."""
        activation = "gelu" if self.gelu else "none"
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            pad_rows(rows),
            self.packed,
            self.bias,
            activation,
            [],  # the activation takes no numbers
            "none",  # and no algorithm
        )
        return out[: len(rows)]


def pack_linear(linear: nn.Linear) -> PackedLinear | None:
    """Return the fastest layer that replaces ``linear`` here; None if that is ``linear`` itself."""
    if kernels.multiplies_fastest(linear.weight):
        return KernelLinear(linear)
    if onednn_works(linear.weight.dtype):
        return OneDnnLinear(linear)
    return None


@lru_cache
def onednn_works(dtype: torch.dtype) -> bool:
    """Return whether `OneDnnLinear` works: compares it once with a small plain layer.

    If it fails, one line in the log says so.
    """
    if dtype not in kernels.DTYPES or not torch.backends.mkldnn.is_available():
        return False
    # Fixed values: a probe leaves the random numbers of the process alone.
    linear = nn.utils.skip_init(nn.Linear, 32, 16).requires_grad_(False)
    linear.weight.copy_(torch.linspace(-1, 1, 16 * 32).view(16, 32))
    linear.bias.copy_(torch.linspace(-1, 1, 16))
    linear = linear.to(dtype)
    x = torch.linspace(-1, 1, 96).view(3, 32).to(dtype)
    try:
        result = OneDnnLinear(linear, gelu=True)(x)
    except (RuntimeError, AttributeError) as error:
        _log.warning("oneDNN's packed linear layers cannot be used, PyTorch's are: %s", error)
        return False
    expected = F.gelu(linear(x))
    if torch.allclose(result, expected, rtol=_TEST_TOLERANCE, atol=_TEST_TOLERANCE):
        return True
    _log.warning("oneDNN's packed linear layers are wrong here in %s; PyTorch's are used", dtype)
    return False
