"""The compiled library of kernels: found, loaded and called with ctypes."""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}

_log = logging.getLogger(__name__)
_POINTER = ctypes.c_void_p
_INT = ctypes.c_int64
_FLOAT = ctypes.c_float
_SIGNATURES = {
    "attention": [_POINTER] * 3 + [_INT] * 3 + [_POINTER] * 2 + [_INT] * 3 + [_FLOAT, _POINTER],
    "merge": [_POINTER] * 2 + [_INT] + [_POINTER] * 3 + [_INT] * 5 + [_POINTER] * 4,
    "layer_norm": [_POINTER] * 3 + [_INT] * 2 + [_FLOAT, _POINTER],
    "linear": [_POINTER] * 3 + [_INT] * 3 + [ctypes.c_int] + [_POINTER] * 2,
    "mlp": [_POINTER] * 5 + [_INT] * 4 + [_POINTER] * 2,
    "encode": [_POINTER],
    "normalise": [_POINTER] * 3 + [_INT] * 3 + [_POINTER],
}
_RESULTS: dict[str, Any] = {"encode": ctypes.c_int}


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL | None:
    """The compiled kernels; None, with one line in the log, where they are missing or not for this processor."""
    found = sorted(Path(__file__).parent.glob("_kernels*.so"))
    if not found:
        _log.warning(
            "the CPU kernels are not compiled (no C++ compiler at installation?); PyTorch's are"
            " used instead"
        )
        return None
    try:
        library = ctypes.CDLL(str(found[0]))  # its OpenMP symbols are those that torch has loaded
        for name, arguments in _SIGNATURES.items():
            for suffix in DTYPES.values():
                function = getattr(library, f"tome_{name}_{suffix}")
                function.argtypes = arguments
                function.restype = _RESULTS.get(name)
    except (OSError, AttributeError) as error:  # missing symbols: compiled from other sources
        _log.warning("the CPU kernels cannot be loaded, PyTorch's are used instead: %s", error)
        return None
    if not library.tome_supported():
        _log.info("this processor lacks AVX-512 with bfloat16; PyTorch's kernels are used")
        return None
    library.tome_prepare()
    library.tome_mlp_rows.restype = ctypes.c_int64
    return library


def call(name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> Any:
    """Run kernel ``name`` for ``dtype``. Tensors, which are dense, are given as the address of their data."""
    library = load_library()
    assert library is not None, "check available() first"
    # Hands set_num_threads on to the OpenMP of this thread, if nothing has done so yet.
    torch.get_num_threads()
    given = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
    return getattr(library, f"tome_{name}_{DTYPES[dtype]}")(*given)
