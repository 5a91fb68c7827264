"""Patch embedding as a matrix product compared with the convolution."""

from __future__ import annotations

import pytest
import torch

from tome_core.backends.patch_embedding import MatrixPatches, cut_patches


def test_patches_are_cut_row_by_row_without_the_remainder() -> None:
    images = torch.arange(2 * 3 * 7 * 9).view(2, 3, 7, 9)
    patches = cut_patches(images, (3, 4))
    assert patches.shape == (2, 2, 2, 3, 3, 4)
    assert torch.equal(patches[1, 0, 1], images[1, :, :3, 4:8])
    assert torch.equal(patches[0, 1, 0], images[0, :, 3:6, :4])


@torch.no_grad()
@pytest.mark.parametrize("stride", [(4, 2), (3, 2), (1, 1), (2, 1)])
def test_the_product_equals_the_convolution(stride: tuple[int, int]) -> None:
    convolution = torch.nn.Conv2d(3, 5, (4, 2), stride=stride, dtype=torch.float64)
    images = torch.randn(2, 3, 17, 9, dtype=torch.float64)
    embedded = MatrixPatches(convolution)(images)
    torch.testing.assert_close(embedded, convolution(images))
