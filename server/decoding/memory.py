"""Anonymous memory that carries a body to a decode worker, and the inputs back.

The worker receives descriptors. Seals keep the sizes as they are (memfd_create(2)): a read beyond
an end that the worker has moved would fail, in a mapping by a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_CHUNK_BYTES = 1 << 20  # that the event loop copies at a time: below a millisecond


@contextlib.contextmanager
def anonymous_memory(name: str, size: int) -> Iterator[int]:
    """Open ``size`` bytes, all zero, and close them at the end. Pages exist once written.

    Args:
        name: in tools that list the open files of a process.

    Returns:
        The descriptor.

    Raises:
        OSError: the system has no memory or open files.
    """
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        yield descriptor
    finally:
        os.close(descriptor)


async def write_sealed(descriptor: int, body: bytes) -> None:
    """Copy ``body`` into memory of its size, which nobody can change from then on.

    Other tasks of the event loop run in between.

    Raises:
        OSError: the system has no memory.
    """
    start = 0
    with memoryview(body) as view:
        while start < len(body):
            start += os.pwrite(descriptor, view[start : start + _CHUNK_BYTES], start)
            await asyncio.sleep(0)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)


def read_body(descriptor: int) -> bytes:
    """Return all bytes of the memory."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0)


async def read_inputs(
    descriptor: int, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Return a copy of the first values, of ``shape`` and ``dtype``: the worker can still write.

    Other tasks of the event loop run in between: the clips of one video have tens of megabytes.

    Raises:
        EOFError: the memory is smaller.
    """
    inputs = np.empty(shape, dtype)
    values = inputs.data.cast("B")
    start = 0
    while start < len(values):
        size = os.preadv(descriptor, [values[start : start + _CHUNK_BYTES]], start)
        if not size:
            raise EOFError
        start += size
        await asyncio.sleep(0)
    return inputs


def write_inputs(descriptor: int, inputs: npt.NDArray[Any]) -> None:
    """Write ``inputs`` from the start of the memory on.

    By a mapping: a process that may write no file (RLIMIT_FSIZE) cannot write() to memory either.

    Raises:
        ValueError: the memory is smaller.
    """
    size = os.fstat(descriptor).st_size
    if inputs.nbytes > size:
        raise ValueError(f"{inputs.nbytes} bytes of inputs do not fit into {size}")
    values = np.ascontiguousarray(inputs)
    with mmap.mmap(descriptor, values.nbytes) as mapping:
        mapping[:] = values.data.cast("B")
