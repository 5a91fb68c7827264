"""Kernels for x86 processors with AVX-512 and bfloat16: linear layers, attention, merging and norms of packed buffers.

They are compiled when the package is installed and a compiler is there; `available` says whether
they can be used. All work in float32 inside, on contiguous buffers of float32 or bfloat16, image by
image or row by row: an image's result does not depend on who shares its batch. OpenMP is PyTorch's
own, so ``torch.set_num_threads`` holds here too.
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

LANES = 16  # the width of a head must be a multiple of it
_PANEL = 64  # outputs of a linear layer that are computed together: kPanel of linear.cpp


def available() -> bool:
    """Whether the kernels of this package can run here."""
    return load_library() is not None


def supports(dtype: torch.dtype) -> bool:
    """Whether they can, on tensors of ``dtype``."""
    return dtype in DTYPES and available()


def multiplies_fastest(weight: Tensor) -> bool:
    """Whether `linear` is the fastest way to multiply by ``weight (out, in)``.

    With AMX, which `linear` does not use, oneDNN is left to multiply in bfloat16; nobody measured
    that yet.
    """
    if not supports(weight.dtype) or weight.shape[1] % _pair(weight.dtype):
        return False
    library = load_library()
    return weight.dtype == torch.float32 or (library is not None and not library.tome_has_amx())


@dataclass(frozen=True)
class PackedWeight:
    """A weight ``(out, in)`` and its bias, in the order in which `linear` reads them; zeros behind the last output.

    Attributes:
        panels: ``(panels, in / pair, 64, pair)``; a pair is what one instruction multiplies and
            adds: two values of bfloat16, one of float32.
        bias: float32 ``(panels * 64,)``.
    """

    panels: Tensor
    bias: Tensor
    inputs: int
    outputs: int

    def check(self, x: Tensor) -> None:
        """Raise `ValueError` unless ``x (T, in)`` can be multiplied: the kernels would read what is not theirs."""
        if (
            x.shape[1] != self.inputs
            or x.dtype != self.panels.dtype
            or x.device != self.panels.device
        ):
            raise ValueError(
                f"a layer of {self.inputs} inputs in {self.panels.dtype} on {self.panels.device}"
                f" was given {x.shape[1]} in {x.dtype} on {x.device}"
            )


def pack_linear(weight: Tensor, bias: Tensor | None) -> PackedWeight:
    """``weight (out, in)`` and ``bias (out,)``. Raises `ValueError` for an odd number of inputs in bfloat16."""
    outputs, inputs = weight.shape
    room = (0, -outputs % _PANEL)
    pair = _pair(weight.dtype)
    if inputs % pair:
        raise ValueError(f"{inputs} inputs are no whole pairs")
    padded = F.pad(weight, (0, 0, *room)).view(-1, _PANEL, inputs // pair, pair)
    bias = weight.new_zeros(outputs) if bias is None else bias.detach()
    return PackedWeight(
        padded.transpose(1, 2).contiguous(), F.pad(bias.float(), room), inputs, outputs
    )


def linear(x: Tensor, weight: PackedWeight, gelu: bool = False) -> Tensor:
    """``x (T, in)`` times ``weight`` plus its bias, ``(T, out)``, through GELU (arXiv 1606.08415) where asked.

    Raises:
        ValueError: ``x`` has other inputs, another dtype or device than ``weight``.
    """
    weight.check(x)
    x = x.contiguous()
    out = empty_rows(len(x), weight.outputs, x.dtype)
    call(
        "linear",
        x.dtype,
        x,
        weight.panels,
        weight.bias,
        len(x),
        weight.inputs,
        weight.outputs,
        gelu,
        None,
        out,
    )
    return out


def mlp(x: Tensor, first: PackedWeight, second: PackedWeight) -> Tensor:
    """`linear` with GELU by ``first``, then `linear` by ``second``: ``(T, in)`` -> ``(T, out)``, the same bits.

    Of large batches the values between the two are never all there at once. Raises `ValueError` as
    `linear`, and where ``second`` has other inputs than ``first`` has outputs.
    """
    first.check(x)
    if first.outputs != second.inputs or first.panels.dtype != second.panels.dtype:
        raise ValueError(f"{first.outputs} outputs are no {second.inputs} inputs")
    library = load_library()
    assert library is not None, "check available() first"
    if len(x) < library.tome_mlp_rows():
        return linear(linear(x, first, gelu=True), second)
    x = x.contiguous()
    out = empty_rows(len(x), second.outputs, x.dtype)
    weights = first.panels, first.bias, second.panels, second.bias
    call(
        "mlp", x.dtype, x, *weights, len(x), first.inputs, first.outputs, second.outputs, None, out
    )
    return out


def _pair(dtype: torch.dtype) -> int:
    return 4 // dtype.itemsize


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of each row of ``x (..., D)`` (arXiv 1607.06450); ``weight`` and ``bias (D,)`` are float32."""
    x = x.contiguous()
    rows = x.numel() // x.shape[-1]
    dim = x.shape[-1]
    out = empty_rows(rows, dim, x.dtype)
    call("layer_norm", x.dtype, x, weight, bias, rows, dim, eps, out)
    return out.view(x.shape)


def normalise(pixels: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 ``pixels (B, C, H, W)`` times ``scale`` plus ``shift``, float32 ``(C,)`` or ``(1,)``, in ``dtype``."""
    pixels = pixels.contiguous()
    scale, shift = (values.expand(pixels.shape[1]).contiguous() for values in (scale, shift))
    batch, channels, height, width = pixels.shape
    out = WORKSPACE.empty(batch, channels * height * width, dtype).view(pixels.shape)
    planes = pixels, scale, shift, batch * channels, channels
    call("normalise", dtype, *planes, height * width, out)
    return out


def attention(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None, offsets: Tensor) -> Tensor:
    """Proportional attention (paper, equation 1) within each image of a packed buffer.

    Args:
        q, k, v: ``(T, H, d)``, each with dense heads; d a multiple of `LANES`.
        sizes: float32 ``(T,)``, or None for all ones.
        offsets: int64 ``(images + 1,)``, where each image begins, then T.

    Returns:
        ``(T, H * d)``.
    """
    q = _dense_heads(q)
    k = _dense_heads(k)
    v = _dense_heads(v)
    tokens, heads, depth = q.shape
    out = empty_rows(tokens, heads * depth, q.dtype)
    bias = None if sizes is None else sizes.log2()
    strides = q.stride(0), k.stride(0), v.stride(0)
    where = bias, offsets, len(offsets) - 1
    call(
        "attention",
        q.dtype,
        q,
        k,
        v,
        *strides,
        *where,
        heads,
        depth,
        depth**-0.5 * math.log2(math.e),
        out,
    )
    return out


def merge(
    x: Tensor, keys: Tensor, sizes: Tensor | None, offsets: Tensor, out_offsets: Tensor, prefix: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bipartite soft matching and the weighted merge (paper, section 3) within each image of a packed buffer.

    Args:
        x: tokens ``(T, D)``.
        keys: ``(T, H, d)``; their mean over the heads is what tokens are compared by.
        sizes: float32 ``(T,)``, or None for all ones.
        offsets, out_offsets: int64 ``(images + 1,)``, where each image begins before and after; the
            difference of its lengths is what is merged away, at most half of what is no prefix
            token.

    Returns:
        Tokens ``(T', D)``, sizes ``(T',)``, and what `tome_core.matching.Matching` holds, flat over
        all images: int64 ``dest (T,)``, positions within an image, and bool ``merged (T,)``.
    """
    x = x.contiguous()
    keys = _dense_heads(keys)
    tokens, dim = x.shape
    left = int(out_offsets[-1])
    out = empty_rows(left, dim, x.dtype)
    out_sizes = x.new_empty(left, dtype=torch.float32)
    dest = x.new_empty(tokens, dtype=torch.int64)
    merged = x.new_empty(tokens, dtype=torch.bool)
    where = sizes, offsets, out_offsets, len(offsets) - 1
    shape = dim, keys.shape[1], keys.shape[2], prefix
    call("merge", x.dtype, x, keys, keys.stride(0), *where, *shape, out, out_sizes, dest, merged)
    return out, out_sizes, dest, merged


def _dense_heads(x: Tensor) -> Tensor:
    """``(T, H, d)`` whose heads follow each other without a gap; a copy only where it is not so."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
