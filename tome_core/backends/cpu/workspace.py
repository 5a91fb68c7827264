"""Memory for large activations, kept from layer to layer and from batch to batch.

The layers of a network want rows of few widths over and over. The C allocator, asked for aligned
blocks that shrink as tokens merge, splits what it has until it holds several times what is in use;
mapped anew each time, their pages would be faulted in and cleared each time. So whole blocks are
kept, for rows of one width each: of a width there are never more than were in use at once, none
larger than the most rows.
"""

from __future__ import annotations

import mmap
import weakref

import torch
from torch import Tensor

_LARGE = 1 << 20  # bytes from which on a block is worth keeping


class Workspace:
    """Blocks of memory that are free. Tensors may be asked for, and end, in any thread."""

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = {}  # by the bytes of a row

    @property
    def free_bytes(self) -> int:
        """What is kept and not in use."""
        return sum(len(block) for blocks in list(self._free.values()) for block in list(blocks))

    def empty(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Uninitialised ``(rows, width)`` on the CPU; its memory comes back when the last view of it is gone.

        Raises:
            MemoryError: the system has none left.
        """
        row = width * dtype.itemsize
        if rows * row < _LARGE:
            return torch.empty(rows, width, dtype=dtype)
        free = self._free.setdefault(row, [])
        block = _take(free, rows * row)
        lent = memoryview(block)
        weakref.finalize(lent, free.append, block).atexit = False
        return torch.frombuffer(lent, dtype=dtype, count=rows * width).view(rows, width)

    def clear(self) -> None:
        """Give back what is free now."""
        for blocks in list(self._free.values()):
            blocks.clear()


def _take(free: list[mmap.mmap], size: int) -> mmap.mmap:
    """The smallest of ``free`` that has ``size`` bytes, or a new one."""
    for block in sorted(free, key=len):
        if len(block) >= size and _remove(free, block):
            return block
    for block in list(free):  # batches have become larger: what is too small from now on makes room
        _remove(free, block)
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"can't allocate memory: {size} bytes for activations") from error


def _remove(free: list[mmap.mmap], block: mmap.mmap) -> bool:
    """Whether this thread was the first to take ``block``."""
    try:
        free.remove(block)
    except ValueError:
        return False
    return True


WORKSPACE = Workspace()
