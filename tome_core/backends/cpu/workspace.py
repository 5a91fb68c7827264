"""Memory for large activations, reused from layer to layer and from batch to batch.

The layers of a network request rows of the same few widths again and again. glibc's allocator,
asked for aligned blocks that shrink as tokens merge, splits its memory: an engine with a ViT-S
grows by 200 MB in 240 mixed batches. Fresh mappings cost page faults and zeroing each time: 6% of a
forward pass, 30% where blocks run one by one. jemalloc does neither and takes 2% longer, but would
have to be loaded before Python. So this module keeps whole blocks, each for rows of one width: for
a width there are never more blocks than were in use at once, and none is larger than the largest
request.
"""

from __future__ import annotations

import mmap
import weakref

import torch
from torch import Tensor

_LARGE_BYTES = 1 << 20  # smaller tensors are left to the C allocator


class Workspace:
    """A pool of memory blocks. Tensors may be requested, and freed, in any thread."""

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = {}  # by the bytes of a row

    @property
    def free_bytes(self) -> int:
        """The bytes of all blocks that are kept and not in use."""
        total = 0
        # Copied, because other threads may change them meanwhile.
        for blocks in list(self._free.values()):
            total += sum(len(block) for block in list(blocks))
        return total

    def empty(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return an uninitialised ``(rows, width)`` on the CPU.

        Its memory returns to the pool when the last view of it is freed.

        Raises:
            MemoryError: the system is out of memory.
        """
        row_bytes = width * dtype.itemsize
        if rows * row_bytes < _LARGE_BYTES:
            return torch.empty(rows, width, dtype=dtype)
        free = self._free.setdefault(row_bytes, [])
        block = _take(free, rows * row_bytes)
        lent = memoryview(block)
        finalizer = weakref.finalize(lent, free.append, block)
        finalizer.atexit = False
        tensor = torch.frombuffer(lent, dtype=dtype, count=rows * width)
        return tensor.view(rows, width)

    def clear(self) -> None:
        """Release all blocks that are not in use."""
        for blocks in list(self._free.values()):
            blocks.clear()


def _take(free: list[mmap.mmap], size: int) -> mmap.mmap:
    """Take the smallest block of ``free`` that has ``size`` bytes, or allocate one."""
    for block in sorted(free, key=len):
        if len(block) >= size and _remove(free, block):
            return block
    free.clear()  # batches have become larger, and all blocks are too small now
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"can't allocate memory: {size} bytes for activations") from error


def _remove(free: list[mmap.mmap], block: mmap.mmap) -> bool:
    """Remove ``block`` from ``free``; return False if another thread has taken it already."""
    try:
        free.remove(block)
    except ValueError:
        return False
    return True


WORKSPACE = Workspace()
