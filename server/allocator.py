"""Settings of glibc's allocator and of the garbage collector for a process that runs for long.

Tensors of a batch and bodies of requests are large, and the next ones have the same sizes again.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

# Options of mallopt, in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4

_LARGE_BLOCK_BYTES = 1 << 20
_MAX_MAPPED_BLOCKS = 65536  # the default of glibc
_HEAP_STEP_BYTES = 64 << 20
_NEVER_TRIM = -1
KEPT_BYTES = 64 << 20  # of freed memory, of a process that takes bodies or decodes them


def map_large_blocks() -> bool:
    """Let glibc map each block from 1 MiB on by itself, and return it to the kernel when freed.

    In the heap such blocks leave holes: it cannot put an aligned block where one of the same size
    was, and small blocks that stay are allocated in between. The heap then grows with every new
    kind of batch. Returns whether the allocator accepts the options.
    """
    return _set_options(
        {
            _M_MMAP_MAX: _MAX_MAPPED_BLOCKS,
            _M_MMAP_THRESHOLD: _LARGE_BLOCK_BYTES,
        }
    )


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next batch, not return them to the kernel.

    This is for networks whose activations PyTorch allocates, not for those that use
    `tome_core.backends.cpu.workspace`. Otherwise every tensor of some megabytes is mapped anew, and
    its pages are faulted in and cleared at first use, which can cost more than to compute its
    values. Returns whether the allocator is glibc's and accepts the options.
    """
    # Blocks of any size come from the heap, which never shrinks and grows in large steps.
    return _set_options(
        {
            _M_MMAP_MAX: 0,
            _M_TRIM_THRESHOLD: _NEVER_TRIM,
            _M_TOP_PAD: _HEAP_STEP_BYTES,
        }
    )


def keep_some_freed_memory() -> bool:
    """Let glibc keep freed memory for the bodies of the next requests.

    It returns to the kernel what is free at the end of an arena beyond `KEPT_BYTES`; each thread
    may have an arena. Otherwise bodies of some megabytes may be mapped anew each time; that depends
    on the sizes of earlier ones. Returns whether the allocator accepts the options.
    """
    return _set_options(
        {
            _M_MMAP_THRESHOLD: KEPT_BYTES // 2,
            _M_TRIM_THRESHOLD: KEPT_BYTES,
        }
    )


def release_freed_memory() -> None:
    """Return free memory to the kernel, such as what only the start-up needed."""
    gc.collect()  # models have many reference cycles
    malloc_trim = _glibc_function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def freeze_live_objects() -> None:
    """Exempt all objects that exist now from garbage collection, as they live to the end."""
    gc.collect()
    gc.freeze()


def _set_options(options: dict[int, int]) -> bool:
    mallopt = _glibc_function("mallopt")
    if mallopt is None:
        return False
    return all(mallopt(option, value) == 1 for option, value in options.items())


def _glibc_function(name: str) -> Any:
    """Return a function of the C library, None on musl or another system."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
