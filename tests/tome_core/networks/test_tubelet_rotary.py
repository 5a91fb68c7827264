"""The angles of tubelets, beside those that the oracle of `tests.tome_core.vjepa2` spells out."""

from __future__ import annotations

import math

import pytest
import torch

from tome_core.networks.tubelet_rotary import rotary_table


def test_three_segments_turn_by_time_row_and_column() -> None:
    table = rotary_table((2, 3, 5), 64, dtype=torch.float64)
    assert table.shape == (30, 128)
    sines, cosines = table.view(2, 3, 5, 2, 64).unbind(3)
    time, row, column, still = sines.split([20, 20, 20, 4], dim=-1)
    for segment, axis in ((time, 0), (row, 1), (column, 2)):
        along = segment.movedim(axis, 0)
        assert (along == along[:, :1, :1]).all()  # the other two axes do not matter
        expected = [
            [math.sin(place / 10_000 ** ((channel % 10) / 10)) for channel in range(20)]
            for place in range(len(along))
        ]
        torch.testing.assert_close(along[:, 0, 0], torch.tensor(expected, dtype=torch.float64))
    assert (still == 0).all()
    assert (cosines[..., 60:] == 1).all()
    torch.testing.assert_close(sines.square() + cosines.square(), torch.ones_like(sines))


@pytest.mark.parametrize(("head_dim", "turning"), [(88, 84), (80, 78), (6, 6), (5, 0)])
def test_segments_have_an_even_width(head_dim: int, turning: int) -> None:
    sines = rotary_table((2, 2, 2), head_dim)[:, :head_dim]
    assert (sines[-1] != 0).sum() == turning


def test_angles_of_a_network_of_16_bits_are_of_float32() -> None:
    exact = rotary_table((32, 1, 1), 64, dtype=torch.float64)
    table = rotary_table((32, 1, 1), 64, dtype=torch.bfloat16)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table.double(), exact, rtol=0, atol=1e-5)
