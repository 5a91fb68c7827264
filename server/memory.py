"""How the C allocator treats freed memory: tensors of a batch come and go in the same sizes, over and over."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next batch instead of handing them back to the kernel.

    Otherwise every tensor of some megabytes is mapped anew, and its pages are faulted in and cleared on first touch,
    which can cost more than computing what is written there. Returns whether the allocator is glibc's and agreed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    # Blocks of any size come from the heap, which never shrinks and grows in large steps.
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20))
    return all(mallopt(option, value) == 1 for option, value in wanted)


def release_freed_memory() -> None:
    """Hand what is free now back to the kernel: what a start-up used once would otherwise be kept for ever."""
    gc.collect()  # models are full of cycles
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def keep_what_is_there() -> None:
    """Exempt all objects that exist now, which a started process keeps to its end, from every later collection."""
    gc.collect()
    gc.freeze()
