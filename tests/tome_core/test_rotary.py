from __future__ import annotations

import math

import pytest
import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from tome_core.rotary import make_rotary

PREFIX = 2
PATCHES = 5
HEADS = 3
WIDTH = 4


def angles_of_timm(*leading: int) -> Tensor:
    """Sines, then cosines, of random angles: ``(*leading, PATCHES, 2 * WIDTH)``."""
    generator = torch.Generator().manual_seed(0)
    angles = torch.randn(*leading, PATCHES, WIDTH, generator=generator, dtype=torch.float64)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def queries(tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(tokens, HEADS, WIDTH, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("half", [False, True])
def test_patches_are_rotated_as_timm_does_and_prefix_tokens_are_not(half: bool) -> None:
    tables = angles_of_timm()
    rotary = make_rotary(tables, PREFIX, half)
    positions = torch.tensor([0, 1, 6, 2, 2])
    x = queries(len(positions))
    rotated = rotary.rotate(x, 0, positions)
    assert torch.equal(rotated[:2], x[:2])
    for token in (2, 3, 4):
        angles = tables[positions[token] - PREFIX]
        expected = apply_rot_embed_cat(x[token], angles, half=half)
        torch.testing.assert_close(rotated[token], expected)


def test_each_block_and_head_has_its_own_angles() -> None:
    tables = angles_of_timm(2, HEADS)
    rotary = make_rotary(tables, PREFIX, half=True)
    positions = torch.tensor([3])
    x = queries(1)
    for block in range(2):
        rotated = rotary.rotate(x, block, positions)
        for head in range(HEADS):
            angles = tables[block, head, 3 - PREFIX]
            expected = apply_rot_embed_cat(x[0, head], angles, half=True)
            torch.testing.assert_close(rotated[0, head], expected)


def test_a_quarter_turn_of_neighbours_swaps_them() -> None:
    quarter = torch.tensor([[math.sin(math.pi / 2)] * 2 + [math.cos(math.pi / 2)] * 2])
    rotary = make_rotary(quarter, prefix=0, half=False)
    x = torch.tensor([[[3.0, 5.0]]])
    rotated = rotary.rotate(x, 0, torch.tensor([0]))
    torch.testing.assert_close(rotated, torch.tensor([[[-5.0, 3.0]]]))


def test_the_result_has_the_dtype_of_the_queries() -> None:
    rotary = make_rotary(angles_of_timm(), PREFIX, half=True)
    rotated = rotary.rotate(queries(1).bfloat16(), 0, torch.tensor([4]))
    assert rotated.dtype == torch.bfloat16
    assert not rotary.has_bias
