"""Numbers of rows, rounded up so that few different ones occur.

oneDNN compiles its kernels for each number of rows, which can take as long as the product itself.
Batches of many schedules seldom have the same number of tokens twice, so a server would compile for
every batch and cache every result: a ViT-S takes 1.4 times as long for single images with any r. A
few rows of padding cost little, and a buffer that has room for them needs no copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tome_core.backends.cpu.workspace import WORKSPACE

_SMALLEST_STEP = 8  # rows
_STEPS_PER_DOUBLING = 32  # so at most 3% of the rows are padding, from 256 rows on


def round_up_rows(rows: int) -> int:
    """Return the smallest allowed number of rows that is not below ``rows``."""
    power_of_two = 1 << max(rows, 1).bit_length() - 1
    step = max(_SMALLEST_STEP, power_of_two // _STEPS_PER_DOUBLING)
    steps = -(-rows // step)
    return steps * step


def empty_rows(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return an uninitialised ``(rows, width)`` on the CPU, with room behind it for `pad_rows`."""
    padded = WORKSPACE.empty(round_up_rows(rows), width, dtype)
    return padded[:rows]


def pad_rows(x: Tensor) -> Tensor:
    """Extend ``x (rows, width)`` to `round_up_rows` rows, the new ones with any content.

    Copies ``x`` only if the memory behind it is not its own.
    """
    rows, width = x.shape
    padded_rows = round_up_rows(rows)
    if padded_rows == rows:
        return x
    if _has_room(x, padded_rows):
        return x.as_strided((padded_rows, width), (width, 1))
    padded = x.new_zeros(padded_rows, width)
    padded[:rows] = x
    return padded


def _has_room(x: Tensor, rows: int) -> bool:
    """Whether the storage of ``x (..., width)`` has room for ``rows`` rows."""
    if not x.is_contiguous():
        return False
    end = x.storage_offset() + rows * x.shape[1]
    return bool(end * x.itemsize <= x.untyped_storage().nbytes())
