"""Crops are those of the resized image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.media.transforms import VideoTransform
from server.video.crops import crop_starts, cut_crops

TRANSFORM = VideoTransform(frames=1, tubelet=1, height=24, width=20, resize=28, crops=3)
sides = st.integers(1, 300)


def image(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (101, 99), (50, 50)])
def test_crops_are_those_of_the_whole_image_resized(
    width: int, height: int, interpolation: str
) -> None:
    picture = image(width, height)
    transform = replace(TRANSFORM, interpolation=interpolation)
    scale = 28 / min(width, height)
    resized = (28, int(height * scale)) if width < height else (int(width * scale), 28)
    whole = np.asarray(picture.resize(resized, Image.Resampling[interpolation.upper()]))
    starts = crop_starts(resized[::-1], (24, 20), 3)
    for (top, left), crop in zip(starts, cut_crops(picture, transform), strict=True):
        expected = whole[top : top + 24, left : left + 20].transpose(2, 0, 1)
        difference = np.abs(crop.astype(int) - expected)
        assert difference.max() <= 2
        assert difference.mean() < 0.02


@given(sides, sides, sides, sides)
def test_crops_lie_along_the_longer_side(
    height: int, width: int, spare_height: int, spare_width: int
) -> None:
    resized = (height + spare_height, width + spare_width)
    first, middle, last = crop_starts(resized, (height, width), 3)
    assert crop_starts(resized, (height, width), 1) == [middle]
    along = 0 if resized[0] > resized[1] else 1
    assert first[1 - along] == middle[1 - along] == last[1 - along]
    assert first[along] == 0
    assert last[along] == (spare_height, spare_width)[along]
    for start, spare in zip(middle, (spare_height, spare_width), strict=True):
        assert abs(2 * start - spare) <= 1


def test_grey() -> None:
    grey = replace(TRANSFORM, channels=1, crops=1)
    (crop,) = cut_crops(Image.new("RGB", (30, 40), (255, 0, 0)), grey)
    assert crop.shape == (1, 24, 20)
    assert (crop == 76).all()  # 0.299 of red


def test_an_image_of_one_row() -> None:
    for crop in cut_crops(image(3000, 1), TRANSFORM):
        assert crop.shape == (3, 24, 20)
