"""Memory for large activations, kept from layer to layer and from batch to batch.

The layers of a network want blocks of few sizes over and over. The C allocator, asked for aligned blocks that shrink as
tokens merge, splits what it has until it holds several times what is in use; mapped anew each time, their pages cost
more than the sums that go there. So whole blocks are kept, and each goes to whoever fits in it best.
"""

from __future__ import annotations

import mmap
import weakref
from math import prod

import torch
from torch import Tensor

_LARGE = 1 << 20  # bytes from which on a block is worth keeping


class Workspace:
    """Blocks of memory that are free. Tensors may be asked for, and end, in any thread."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    @property
    def free_bytes(self) -> int:
        """What is kept and not in use."""
        return sum(map(len, self._free))

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor on the CPU; its memory comes back when the last view of it is gone."""
        size = prod(shape) * dtype.itemsize
        if size < _LARGE:
            return torch.empty(*shape, dtype=dtype)
        block = self._take(size)
        lent = memoryview(block)
        weakref.finalize(lent, self._free.append, block).atexit = False
        return torch.frombuffer(lent, dtype=dtype, count=prod(shape)).view(*shape)

    def _take(self, size: int) -> mmap.mmap:
        for block in sorted(self._free, key=len):
            if len(block) >= size and self._remove(block):
                return block
        # What is too small for this will not be wanted as long as something larger is: it makes room.
        for block in list(self._free):
            self._remove(block)
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _remove(self, block: mmap.mmap) -> bool:
        """Whether this thread was the first to take ``block``."""
        try:
            self._free.remove(block)
        except ValueError:
            return False
        return True


WORKSPACE = Workspace()
