from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tome_core.backends.cpu.row_padding import empty_rows, pad_rows, round_up_rows


@given(st.integers(0, 1 << 20))
def test_padding_adds_few_rows(rows: int) -> None:
    assert rows <= round_up_rows(rows) <= max(rows + 7, rows * 33 // 32)
    assert round_up_rows(round_up_rows(rows)) == round_up_rows(rows)


def test_few_different_numbers_of_rows_occur() -> None:
    assert len({round_up_rows(rows) for rows in range(1, 8193)}) <= 192


@given(st.integers(1, 700), st.integers(1, 5))
def test_a_buffer_with_room_is_not_copied(rows: int, width: int) -> None:
    buffer = empty_rows(rows, width, torch.float32)
    assert buffer.shape == (rows, width)
    roomy = pad_rows(buffer)
    assert roomy.shape == (round_up_rows(rows), width)
    assert roomy.data_ptr() == buffer.data_ptr()


@given(st.integers(1, 100), st.booleans())
def test_a_buffer_without_room_keeps_its_rows(rows: int, transposed: bool) -> None:
    x = torch.arange(3.0 * rows)
    x = x.view(3, rows).T if transposed else x.view(rows, 3)
    roomy = pad_rows(x)
    assert roomy.shape == (round_up_rows(rows), 3)
    assert torch.equal(roomy[:rows], x)
