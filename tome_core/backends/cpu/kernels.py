"""Kernels for x86 processors with AVX-512, over packed buffers of tokens.

They compute linear layers, attention, merging and norms. They are compiled when the package is
installed and a C++ compiler is present; `supports` returns whether those for a dtype can be used:
bfloat16 needs instructions that processors with AVX-512 may lack (`library`). All of them
accumulate in float32, on contiguous buffers of float32 or bfloat16, image by image or row by row:
the result for an image does not depend on the other images of its batch. They share PyTorch's
OpenMP, so ``torch.set_num_threads`` applies to them too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.backends.cpu.library import DTYPES as DTYPES
from tome_core.backends.cpu.library import call, load_library
from tome_core.backends.cpu.row_padding import empty_rows
from tome_core.backends.cpu.workspace import WORKSPACE
from tome_core.rules import RULE_NAMES, RuleName

LANES = 16  # floats in one AVX-512 register; the width of a head must be a multiple of it
_PANEL = 64  # outputs of a linear layer that are computed together: kPanel in linear.cpp
_INSTRUCTION_BYTES = 4  # of input that one multiply-add reads for each output
_LOG2_E = math.log2(math.e)


def available() -> bool:
    """Return whether the kernels for float32 are compiled and this processor can run them."""
    return supports(torch.float32)


def supports(dtype: torch.dtype) -> bool:
    """Return whether the kernels can run on tensors of ``dtype``."""
    return dtype in DTYPES and load_library(dtype) is not None


def multiplies_fastest(weight: Tensor) -> bool:
    """Return whether `linear` is the fastest way to multiply by ``weight (out, in)``.

    `linear` does not use AMX. On processors that have it, oneDNN multiplies in bfloat16 instead;
    which of the two is faster there has not been measured.
    """
    library = load_library(weight.dtype) if weight.dtype in DTYPES else None
    if library is None:
        return False
    in_features = weight.shape[1]
    if in_features % _inputs_per_step(weight.dtype):
        return False
    if weight.dtype == torch.float32:
        return True
    return not library.tome_has_amx()


@dataclass(frozen=True)
class PackedWeight:
    """A weight ``(out, in)`` and its bias in the order in which `linear` reads them.

    The last panel is padded with zeros.

    Attributes:
        panels: ``(panels, in / step, 64, step)``, where a step is what one instruction multiplies
            and adds: two values of bfloat16, one of float32.
        bias: float32 ``(panels * 64,)``.
    """

    panels: Tensor
    bias: Tensor
    in_features: int
    out_features: int

    def check_input(self, x: Tensor) -> None:
        """Check that ``x (T, in)`` can be multiplied; otherwise a kernel reads out of bounds.

        Raises:
            ValueError: ``x`` has another number of features, dtype or device.
        """
        expected = self.in_features, self.panels.dtype, self.panels.device
        found = x.shape[1], x.dtype, x.device
        if found != expected:
            raise ValueError(f"{_describe_rows(*expected)} expected, got {_describe_rows(*found)}")


def pack_linear(weight: Tensor, bias: Tensor | None) -> PackedWeight:
    """Pack ``weight (out, in)`` and ``bias (out,)``.

    Raises:
        ValueError: ``weight`` has an odd number of inputs in bfloat16.
    """
    out_features, in_features = weight.shape
    step = _inputs_per_step(weight.dtype)
    if in_features % step:
        raise ValueError(f"{in_features} inputs are not a multiple of {step}")
    padding = -out_features % _PANEL
    padded_weight = F.pad(weight, (0, 0, 0, padding))
    by_panel = padded_weight.view(-1, _PANEL, in_features // step, step)
    panels = by_panel.transpose(1, 2).contiguous()
    if bias is None:
        bias = weight.new_zeros(out_features)
    return PackedWeight(
        panels=panels,
        bias=F.pad(bias.detach().float(), (0, padding)),
        in_features=in_features,
        out_features=out_features,
    )


def linear(x: Tensor, weight: PackedWeight, gelu: bool = False) -> Tensor:
    """Multiply ``x (T, in)`` by ``weight`` and add its bias: ``(T, out)``.

    Args:
        gelu: apply GELU (arXiv 1606.08415) to the result.

    Raises:
        ValueError: ``x`` has another number of features, dtype or device than ``weight``.
    """
    weight.check_input(x)
    x = x.contiguous()
    rows = len(x)
    out = empty_rows(rows, weight.out_features, x.dtype)
    residual = None
    call(
        "linear",
        x.dtype,
        x,
        weight.panels,
        weight.bias,
        rows,
        weight.in_features,
        weight.out_features,
        gelu,
        residual,
        out,
    )
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise each row of ``x (..., D)`` (layer norm, arXiv 1607.06450).

    Args:
        weight, bias: float32 ``(D,)``.
    """
    x = x.contiguous()
    dim = x.shape[-1]
    rows = x.numel() // dim
    out = empty_rows(rows, dim, x.dtype)
    call("layer_norm", x.dtype, x, weight, bias, rows, dim, eps, out)
    return out.view(x.shape)


def normalise(pixels: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``pixels * scale + shift`` in ``dtype``, ``(B, C, H, W)``.

    Args:
        pixels: uint8 ``(B, C, H, W)``.
        scale, shift: float32 ``(C,)`` or ``(1,)``.
    """
    pixels = pixels.contiguous()
    batch, channels, height, width = pixels.shape
    scale = scale.expand(channels).contiguous()
    shift = shift.expand(channels).contiguous()
    plane_size = height * width
    out = WORKSPACE.empty(batch, channels * plane_size, dtype)
    planes = batch * channels
    call("normalise", dtype, pixels, scale, shift, planes, channels, plane_size, out)
    return out.view(pixels.shape)


def attention(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None, offsets: Tensor) -> Tensor:
    """Proportional attention (paper, equation 1) within each image of a packed buffer.

    Args:
        q, k, v: ``(T, H, d)``, where d is a multiple of `LANES`.
        sizes: float32 ``(T,)``, or None if all are 1.
        offsets: int64 ``(images + 1,)``: where each image begins, then T.

    Returns:
        ``(T, H * d)``.
    """
    q = _dense_heads(q)
    k = _dense_heads(k)
    v = _dense_heads(v)
    tokens, heads, head_dim = q.shape
    images = len(offsets) - 1
    # The kernel computes softmax to the base 2.
    bias = None if sizes is None else sizes.log2()
    scale = head_dim**-0.5 * _LOG2_E
    out = empty_rows(tokens, heads * head_dim, q.dtype)
    call(
        "attention",
        q.dtype,
        q,
        k,
        v,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        bias,
        offsets,
        images,
        heads,
        head_dim,
        scale,
        out,
    )
    return out


def merge(
    x: Tensor,
    keys: Tensor,
    sizes: Tensor | None,
    offsets: Tensor,
    out_offsets: Tensor,
    prefix: int,
    rule: RuleName = "paper",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Match and merge the tokens of each image of a packed buffer (paper, section 3).

    Args:
        x: tokens ``(T, D)``.
        keys: ``(T, H, d)``, by which tokens are compared.
        sizes: float32 ``(T,)``, or None if all are 1.
        offsets, out_offsets: int64 ``(images + 1,)``, where each image begins before and after
            merging. An image loses as many tokens as its two lengths differ by: at most half of
            those that are not prefix tokens.
        prefix: tokens at the front of each image that never merge.
        rule: by which tokens merge.

    A similarity of NaN counts as the smallest, so such a token merges last. PyTorch, and with it
    `tome_core.matching.Bipartite`, count it as the largest.

    Returns:
        Tokens ``(T', D)``, sizes ``(T',)``, and the fields of `tome_core.matching.Matching`, flat
        over all images: int64 ``dest (T,)``, positions within an image, and bool ``merged (T,)``.
    """
    x = x.contiguous()
    keys = _dense_heads(keys)
    tokens, dim = x.shape
    _, heads, head_dim = keys.shape
    images = len(offsets) - 1
    out_tokens = int(out_offsets[-1])
    out = empty_rows(out_tokens, dim, x.dtype)
    out_sizes = x.new_empty(out_tokens, dtype=torch.float32)
    dest = x.new_empty(tokens, dtype=torch.int64)
    merged = x.new_empty(tokens, dtype=torch.bool)
    call(
        "merge",
        x.dtype,
        x,
        keys,
        keys.stride(0),
        sizes,
        offsets,
        out_offsets,
        images,
        dim,
        heads,
        head_dim,
        prefix,
        RULE_NAMES.index(rule),
        out,
        out_sizes,
        dest,
        merged,
    )
    return out, out_sizes, dest, merged


def _inputs_per_step(dtype: torch.dtype) -> int:
    return _INSTRUCTION_BYTES // dtype.itemsize


def _describe_rows(features: int, dtype: torch.dtype, device: torch.device) -> str:
    return f"rows of {features} features in {dtype} on {device}"


def _dense_heads(x: Tensor) -> Tensor:
    """``(T, H, d)`` whose heads are adjacent in memory; a copy only if they are not."""
    _, _, head_dim = x.shape
    if x.stride(2) == 1 and x.stride(1) == head_dim:
        return x
    return x.contiguous()
