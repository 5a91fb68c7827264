"""The memory between the API process and a worker."""

from __future__ import annotations

import asyncio
import mmap
import os
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from server.decoding.memory import (
    anonymous_memory,
    read_body,
    read_inputs,
    write_inputs,
    write_sealed,
)

SIZE = 3_000_001  # several chunks, and no whole number of them


def test_a_body_cannot_be_changed_once_it_is_written() -> None:
    body = os.urandom(SIZE)
    with anonymous_memory("test", SIZE) as descriptor:
        asyncio.run(write_sealed(descriptor, body))
        assert read_body(descriptor) == body
        for change in (
            lambda: os.pwrite(descriptor, b"x", 0),
            lambda: os.ftruncate(descriptor, 0),
            lambda: os.ftruncate(descriptor, 2 * SIZE),
            lambda: mmap.mmap(descriptor, SIZE),
        ):
            with pytest.raises(PermissionError):
                change()


def test_other_tasks_run_while_a_body_is_written_or_inputs_are_read() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        counting = asyncio.create_task(count())
        body = os.urandom(SIZE)
        with anonymous_memory("test", SIZE) as descriptor:
            await write_sealed(descriptor, body)
            assert turns >= 3
            inputs = await read_inputs(descriptor, (SIZE,), np.uint8)
        assert inputs.tobytes() == body
        counting.cancel()

    asyncio.run(main())
    assert turns >= 6


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_inputs_come_back_as_a_copy(transposed: bool, dtype: type) -> None:
    inputs: npt.NDArray[Any] = np.arange(24).astype(dtype).reshape(2, 1, 3, 4)
    if transposed:
        inputs = np.swapaxes(inputs, 2, 3)
    with anonymous_memory("test", 1_000) as descriptor:
        write_inputs(descriptor, inputs)
        read = asyncio.run(read_inputs(descriptor, inputs.shape, inputs.dtype))
        write_inputs(descriptor, np.zeros_like(inputs))
    np.testing.assert_array_equal(read, inputs)


def test_inputs_that_do_not_fit_are_refused() -> None:
    inputs = np.zeros((1, 1, 3, 4), np.float32)
    with anonymous_memory("test", inputs.nbytes - 1) as descriptor:
        with pytest.raises(ValueError, match="do not fit"):
            write_inputs(descriptor, inputs)
        with pytest.raises(EOFError):
            asyncio.run(read_inputs(descriptor, inputs.shape, inputs.dtype))
