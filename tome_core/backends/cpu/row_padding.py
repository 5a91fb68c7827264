"""Numbers of rows, rounded up to few different ones.

oneDNN compiles its kernels for each number of rows, which can take as long as multiplying. The
numbers of tokens of batches of many schedules hardly ever repeat, so a server would compile for
every batch, and keep what it compiled. Rows behind the last token cost next to nothing; a buffer
that has room for them needs no copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tome_core.backends.cpu.workspace import WORKSPACE

_FINEST = 8  # rows
_STEPS = 32  # in each doubling: 3% more rows at most, from 256 on


def rounded(rows: int) -> int:
    """The least number from ``rows`` on that layers are given."""
    step = max(_FINEST, (1 << max(rows, 1).bit_length() - 1) // _STEPS)
    return -(-rows // step) * step


def empty_rows(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised ``(rows, width)`` on the CPU, with room behind it for `with_room`."""
    return WORKSPACE.empty(rounded(rows), width, dtype)[:rows]


def with_room(x: Tensor) -> Tensor:
    """``x (rows, width)`` with as many rows more as `rounded` says, whatever stands in them; a copy only if it must."""
    rows, width = x.shape
    more = rounded(rows)
    if more == rows:
        return x
    if (
        x.is_contiguous()
        and (x.storage_offset() + more * width) * x.itemsize <= x.untyped_storage().nbytes()
    ):
        return x.as_strided((more, width), (width, 1))
    room = x.new_zeros(more, width)
    room[:rows] = x
    return room
