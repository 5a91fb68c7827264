"""How the C allocator treats large blocks: tensors of a batch come and go in the same sizes, over and over."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4  # glibc's malloc.h


def map_large_blocks() -> bool:
    """Let glibc map blocks from 1 MB on apart from its heap, whatever was freed before, and hand them back when freed.

    In the heap they leave holes: it cannot put an aligned block where one of the same size has
    been, and small things that stay move in between, so that with every kind of batch it grows.
    Returns whether the allocator agreed.
    """
    return _set((_M_MMAP_MAX, 65536), (_M_MMAP_THRESHOLD, 1 << 20))


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next batch instead of handing them back to the kernel.

    For networks whose activations PyTorch allocates, not `tome_core.backends.cpu.workspace`: there
    every tensor of some megabytes would be mapped anew, and its pages faulted in and cleared on
    first touch, which can cost more than computing what is written there. Returns whether the
    allocator is glibc's and agreed.
    """
    # Blocks of any size come from the heap, which never shrinks and grows in large steps.
    return _set((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20))


def _set(*options: tuple[int, int]) -> bool:
    mallopt = (
        getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    )
    if mallopt is None:  # musl, or another system
        return False
    return all(mallopt(option, value) == 1 for option, value in options)


def release_freed_memory() -> None:
    """Hand what is free now back to the kernel: what a start-up used once would otherwise be kept for ever."""
    gc.collect()  # models are full of cycles
    trim = (
        getattr(ctypes.CDLL(None), "malloc_trim", None)
        if sys.platform.startswith("linux")
        else None
    )
    if trim is not None:
        trim(0)


def keep_what_is_there() -> None:
    """Exempt all objects that exist now, which a started process keeps to its end, from every later collection."""
    gc.collect()
    gc.freeze()
