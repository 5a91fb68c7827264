from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tome_core.backends.cpu.row_padding import empty_rows, rounded, with_room


@given(st.integers(0, 1 << 20))
def test_few_rows_are_added(rows: int) -> None:
    assert rows <= rounded(rows) <= max(rows + 7, rows * 33 // 32)
    assert rounded(rounded(rows)) == rounded(rows)


def test_there_are_few_different_numbers() -> None:
    assert len({rounded(rows) for rows in range(1, 8193)}) <= 192


@given(st.integers(1, 700), st.integers(1, 5))
def test_a_buffer_with_room_is_not_copied(rows: int, width: int) -> None:
    buffer = empty_rows(rows, width, torch.float32)
    assert buffer.shape == (rows, width)
    roomy = with_room(buffer)
    assert roomy.shape == (rounded(rows), width) and roomy.data_ptr() == buffer.data_ptr()


@given(st.integers(1, 100), st.booleans())
def test_a_buffer_without_room_keeps_its_rows(rows: int, transposed: bool) -> None:
    x = torch.arange(3.0 * rows)
    x = x.view(3, rows).T if transposed else x.view(rows, 3)
    roomy = with_room(x)
    assert roomy.shape == (rounded(rows), 3) and torch.equal(roomy[:rows], x)
