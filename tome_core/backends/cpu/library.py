"""The compiled library of kernels: finding it, loading it and calling its functions with ctypes."""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}  # with their suffixes in C

_log = logging.getLogger(__name__)
_POINTER = ctypes.c_void_p
_INT64 = ctypes.c_int64
_INT = ctypes.c_int
_FLOAT = ctypes.c_float
# The parameters of each kernel, as its C++ file declares them.
_SIGNATURES: dict[str, list[Any]] = {
    "attention": [
        *[_POINTER] * 3,
        *[_INT64] * 3,
        *[_POINTER] * 2,
        *[_INT64] * 3,
        _FLOAT,
        _POINTER,
    ],
    "merge": [
        *[_POINTER] * 2,
        _INT64,
        *[_POINTER] * 3,
        *[_INT64] * 5,
        *[_POINTER] * 4,
    ],
    "layer_norm": [
        *[_POINTER] * 3,
        *[_INT64] * 2,
        _FLOAT,
        _POINTER,
    ],
    "linear": [
        *[_POINTER] * 3,
        *[_INT64] * 3,
        _INT,
        *[_POINTER] * 2,
    ],
    "mlp": [
        *[_POINTER] * 5,
        *[_INT64] * 4,
        *[_POINTER] * 2,
    ],
    "encode": [_POINTER],
    "normalise": [
        *[_POINTER] * 3,
        *[_INT64] * 3,
        _POINTER,
    ],
}
_RESULT_TYPES: dict[str, Any] = {"encode": _INT}


@lru_cache(maxsize=1)
def load_library() -> ctypes.CDLL | None:
    """Load the compiled kernels and prepare them.

    Returns:
        None if they are missing or this processor cannot run them; one line in the log says so.
    """
    folder = Path(__file__).parent
    paths = sorted(folder.glob("_kernels*.so"))
    if not paths:
        _log.warning(
            "the CPU kernels are not compiled (no C++ compiler at installation?); PyTorch's are"
            " used instead"
        )
        return None
    try:
        library = _open(paths[0])
    except (OSError, AttributeError) as error:  # missing symbols: compiled from other sources
        _log.warning("the CPU kernels cannot be loaded, PyTorch's are used instead: %s", error)
        return None
    if not library.tome_supported():
        _log.info("this processor lacks AVX-512 with bfloat16; PyTorch's kernels are used")
        return None
    library.tome_prepare()
    return library


def _open(path: Path) -> ctypes.CDLL:
    """Open the library at ``path`` and declare the types of its functions.

    Raises:
        OSError: it cannot be opened.
        AttributeError: a function is missing.
    """
    library = ctypes.CDLL(str(path))  # its OpenMP symbols resolve to those that torch has loaded
    for name, parameter_types in _SIGNATURES.items():
        for suffix in DTYPES.values():
            function = getattr(library, f"tome_{name}_{suffix}")
            function.argtypes = parameter_types
            function.restype = _RESULT_TYPES.get(name)
    library.tome_mlp_rows.restype = _INT64
    return library


def call(name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> Any:
    """Run the kernel ``name`` for ``dtype``; tensors must be dense."""
    library = load_library()
    assert library is not None, "check available() first"
    # Applies set_num_threads to the OpenMP runtime of this thread, unless that is done already.
    torch.get_num_threads()
    function = getattr(library, f"tome_{name}_{DTYPES[dtype]}")
    values = [
        argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments
    ]
    return function(*values)
