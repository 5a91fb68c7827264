"""The compiled kernels: choosing, loading and calling them with ctypes.

There is one library for each dtype, which needs only the instructions that it uses. The highest
instruction set that the kernels may use has a name: ``avx512_bf16`` (both libraries), ``avx512``
(F, BW, DQ and VL: float32 alone) or ``none``. By default it is that of the processor; the
environment variable ``TOME_CPU_ISA`` or `limit_isa` set a lower one.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tome_core.backends.cpu.structures import BlockWeights, EncodeArguments

# The dtypes of activations, with the instruction set that their kernels need, lowest first.
DTYPES = {torch.float32: "avx512", torch.bfloat16: "avx512_bf16"}
AUTO = "auto"
NONE = "none"
ISAS = (*DTYPES.values(), NONE, AUTO)

_log = logging.getLogger(__name__)
_POINTER = ctypes.c_void_p
_INT64 = ctypes.c_int64
_INT32 = ctypes.c_int32
_BOOL = ctypes.c_bool
_FLOAT = ctypes.c_float
# The parameters of each kernel, as kernels.h declares them.
_SIGNATURES: dict[str, list[Any]] = {
    "linear": [*[_POINTER] * 3, *[_INT64] * 3, _BOOL, *[_POINTER] * 2],
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
        _INT32,
        *[_POINTER] * 4,
    ],
    "layer_norm": [*[_POINTER] * 3, *[_INT64] * 2, _FLOAT, _POINTER],
    "normalise": [*[_POINTER] * 3, *[_INT64] * 3, _POINTER],
    "encode": [ctypes.POINTER(EncodeArguments)],
}
# The constants of the library that hold the sizes of its structures.
_SIZES = {"tome_block_bytes": BlockWeights, "tome_encode_bytes": EncodeArguments}

_limit: str | None = None  # set by `limit_isa`


def limit_isa(isa: str) -> None:
    """Let networks that are optimised from now on use no more than ``isa``, one of `ISAS`.

    Where the processor has less than that, it uses what it has; one line in the log says so.

    Raises:
        ValueError: ``isa`` is not one of them.
    """
    global _limit
    _allowed(isa)
    _limit = isa


def load_library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Load the kernels for ``dtype``, one of `DTYPES`, and prepare them.

    Returns:
        None if they are missing, this processor cannot run them, or a lower limit is set.

    Raises:
        ValueError: TOME_CPU_ISA is not one of `ISAS`.
    """
    limit = _limit or os.environ.get("TOME_CPU_ISA") or AUTO
    isa = DTYPES[dtype]
    if isa not in _allowed(limit):
        return None
    return _load(isa)


@lru_cache
def _allowed(limit: str) -> tuple[str, ...]:
    """Return the instruction sets of `DTYPES` up to ``limit``."""
    if limit not in ISAS:
        raise ValueError(f"TOME_CPU_ISA is {limit!r}; use one of {', '.join(ISAS)}")
    isas = tuple(DTYPES.values())
    if limit == AUTO:
        return isas
    if limit == NONE:
        return ()
    if _load(limit) is None:
        _log.warning("TOME_CPU_ISA is %s, which cannot be used here; lower ones are", limit)
    return isas[: isas.index(limit) + 1]


@lru_cache
def _load(isa: str) -> ctypes.CDLL | None:
    """Load the library of ``isa``; if it cannot be used, return None and log why."""
    folder = Path(__file__).parent
    paths = sorted(folder.glob(f"_kernels_{isa}.*so"))
    if not paths:
        _log.warning(
            "the CPU kernels for %s are not compiled (no C++ compiler at installation, or an old"
            " one?); PyTorch's are used instead",
            isa,
        )
        return None
    try:
        library = _open(paths[0])
    except (OSError, AttributeError, ValueError) as error:
        _log.warning(
            "the CPU kernels for %s cannot be loaded, PyTorch's are used instead: %s", isa, error
        )
        return None
    if not library.tome_supported():
        _log.info("this processor lacks %s; PyTorch's kernels are used", isa)
        return None
    library.tome_prepare()
    return library


def _open(path: Path) -> ctypes.CDLL:
    """Open the library at ``path`` and declare the types of its functions.

    Raises:
        OSError: it cannot be opened.
        AttributeError, ValueError: a function or constant is missing, or a structure has another
            size: it is compiled from other sources.
    """
    library = ctypes.CDLL(str(path))  # its OpenMP symbols resolve to those that torch has loaded
    for name, parameter_types in _SIGNATURES.items():
        function = getattr(library, f"tome_{name}")
        function.argtypes = parameter_types
        function.restype = None
    library.tome_encode.restype = _BOOL
    for name, structure in _SIZES.items():
        size = _INT64.in_dll(library, name).value
        if size != ctypes.sizeof(structure):
            raise ValueError(f"{name} is {size}, not {ctypes.sizeof(structure)}")
    return library


def call(
    name: str,
    dtype: torch.dtype,
    *arguments: Tensor | float | ctypes.Structure | None,
) -> Any:
    """Run the kernel ``name`` for ``dtype``; tensors must be dense."""
    library = _load(DTYPES[dtype])
    assert library is not None, "check supports() first"
    # Applies set_num_threads to the OpenMP runtime of this thread, unless that is done already.
    torch.get_num_threads()
    function = getattr(library, f"tome_{name}")
    values = [
        argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments
    ]
    return function(*values)
