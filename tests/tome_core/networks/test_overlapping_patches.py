"""Overlapping patches: sizes, strides, and what timm asks of a patch embedding."""

from __future__ import annotations

import pytest
import torch

from tome_core.backends.patch_embedding import MatrixPatches
from tome_core.networks.overlapping_patches import OverlapPatchEmbed


@pytest.mark.parametrize(
    ("size", "patch", "stride", "grid"),
    [
        ((128, 1024), 16, 10, (12, 101)),
        ((128, 1024), 16, 16, (8, 64)),
        ((128, 998), (128, 2), (128, 1), (1, 997)),
        (40, 8, (5, 7), (7, 5)),
    ],
)
@torch.no_grad()
def test_the_grid_is_that_of_the_convolution(
    size: int | tuple[int, int],
    patch: int | tuple[int, int],
    stride: int | tuple[int, int],
    grid: tuple[int, int],
) -> None:
    embedding = OverlapPatchEmbed(size, patch, 1, 4, stride=stride)
    images = torch.randn(2, 1, *embedding.img_size)
    expected = embedding.proj(images)
    assert embedding.grid_size == expected.shape[2:] == grid
    assert embedding.num_patches == grid[0] * grid[1]
    torch.testing.assert_close(embedding(images), expected.flatten(2).transpose(1, 2))
    torch.testing.assert_close(MatrixPatches(embedding.proj)(images), expected)


def test_images_of_another_size() -> None:
    embedding = OverlapPatchEmbed((20, 30), 6, 1, 4, stride=5)
    embedding.set_input_size((20, 60))
    assert embedding.grid_size == (3, 11)
    assert embedding.feat_ratio() == 5
    assert embedding.feat_ratio(as_scalar=False) == (5, 5)
    with pytest.raises(ValueError, match="cannot be resized"):
        embedding.set_input_size(patch_size=8)
