"""Kernels for x86 processors with AVX-512 and bfloat16: attention, merging and norms over packed buffers.

They are compiled when the package is installed and a compiler is there; `available` says whether they can be used. All
work in float32 inside, on contiguous buffers of float32 or bfloat16, image by image: an image's result does not depend
on who shares its batch. OpenMP is PyTorch's own, so ``torch.set_num_threads`` holds here too.
"""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from tome_core.rows import empty_rows

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}
LANES = 16  # the width of a head must be a multiple of it

_log = logging.getLogger(__name__)
_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "attention": [_POINTER] * 3 + [_INT] * 3 + [_POINTER] * 2 + [_INT] * 3 + [_FLOAT, _POINTER],
    "merge": [_POINTER] * 2 + [_INT] + [_POINTER] * 3 + [_INT] * 5 + [_POINTER] * 4,
    "layer_norm": [_POINTER] * 3 + [_INT] * 2 + [_FLOAT, _POINTER],
    "normalise": [_POINTER] * 3 + [_INT] * 3 + [_POINTER],
}


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with one line in the log, where they are missing or not for this processor."""
    found = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not found:
        _log.warning("the CPU kernels are not compiled (no C++ compiler at installation?); PyTorch's are used instead")
        return None
    try:
        library = ctypes.CDLL(str(found[0]))  # its OpenMP symbols are those that torch has loaded
    except OSError as error:
        _log.warning("the CPU kernels cannot be loaded, PyTorch's are used instead: %s", error)
        return None
    if not library.tome_supported():
        _log.info("this processor lacks AVX-512 with bfloat16; PyTorch's kernels are used")
        return None
    for name, arguments in _SIGNATURES.items():
        for suffix in DTYPES.values():
            function = getattr(library, f"tome_{name}_{suffix}")
            function.argtypes, function.restype = arguments, None
    return library


def available() -> bool:
    """Whether the kernels of this package can run here."""
    return _library() is not None


def supports(dtype: torch.dtype) -> bool:
    """Whether they can, on tensors of ``dtype``."""
    return dtype in DTYPES and available()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of each row of ``x (..., D)`` (arXiv 1607.06450); ``weight`` and ``bias (D,)`` are float32."""
    x = x.contiguous()
    rows, dim = x.numel() // x.shape[-1], x.shape[-1]
    out = empty_rows(rows, dim, x.dtype)
    _call("layer_norm", x, _at(x), _at(weight), _at(bias), rows, dim, eps, _at(out))
    return out.view(x.shape)


def normalise(pixels: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 ``pixels (B, C, H, W)`` times ``scale`` plus ``shift``, float32 ``(C,)`` or ``(1,)``, in ``dtype``."""
    pixels = pixels.contiguous()
    scale, shift = (values.expand(pixels.shape[1]).contiguous() for values in (scale, shift))
    out = torch.empty(pixels.shape, dtype=dtype)
    batch, channels, height, width = pixels.shape
    planes = _at(pixels), _at(scale), _at(shift), batch * channels, channels
    _call("normalise", out, *planes, height * width, _at(out))
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
    q, k, v = _dense_heads(q), _dense_heads(k), _dense_heads(v)
    tokens, heads, depth = q.shape
    out = empty_rows(tokens, heads * depth, q.dtype)
    bias = None if sizes is None else sizes.log()
    strides = q.stride(0), k.stride(0), v.stride(0)
    where = _at(bias), _at(offsets), len(offsets) - 1
    _call("attention", q, _at(q), _at(k), _at(v), *strides, *where, heads, depth, depth**-0.5, _at(out))
    return out


def merge(
    x: Tensor, keys: Tensor, sizes: Tensor | None, offsets: Tensor, out_offsets: Tensor, prefix: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bipartite soft matching and the weighted merge (paper, section 3) within each image of a packed buffer.

    Args:
        x: tokens ``(T, D)``.
        keys: ``(T, H, d)``; their mean over the heads is what tokens are compared by.
        sizes: float32 ``(T,)``, or None for all ones.
        offsets, out_offsets: int64 ``(images + 1,)``, where each image begins before and after; the difference of its
            lengths is what is merged away, at most half of what is no prefix token.

    Returns:
        Tokens ``(T', D)``, sizes ``(T',)``, and what `tome_core.matching.Matching` holds, flat over all images:
        int64 ``dest (T,)``, positions within an image, and bool ``merged (T,)``.
    """
    x, keys = x.contiguous(), _dense_heads(keys)
    tokens, dim = x.shape
    left = int(out_offsets[-1])
    out, out_sizes = x.new_empty(left, dim), x.new_empty(left, dtype=torch.float32)
    dest, merged = x.new_empty(tokens, dtype=torch.int64), x.new_empty(tokens, dtype=torch.bool)
    where = _at(sizes), _at(offsets), _at(out_offsets), len(offsets) - 1
    shape = dim, keys.shape[1], keys.shape[2], prefix
    _call(
        "merge", x, _at(x), _at(keys), keys.stride(0), *where, *shape, _at(out), _at(out_sizes), _at(dest), _at(merged)
    )
    return out, out_sizes, dest, merged


def _call(name: str, like: Tensor, *arguments: object) -> None:
    library = _library()
    assert library is not None, "check available() first"
    getattr(library, f"tome_{name}_{DTYPES[like.dtype]}")(*arguments)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _dense_heads(x: Tensor) -> Tensor:
    """``(T, H, d)`` whose heads follow each other without a gap; a copy only where it is not so."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
