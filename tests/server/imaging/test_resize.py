"""Pixels equal those of timm's evaluation transform: byte for byte, or but for rounding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.imaging.resize import (
    MIN_REDUCED_RATIO,
    center_crop,
    dct_reduction,
    resize_and_crop,
    resized_size,
)
from server.media.transforms import ImageTransform
from tests.pictures.compare import MEAN, timm_pixels

SIDES = st.integers(1, 160)


def noise(width: int, height: int, channels: int, contrast: int = 255) -> Image.Image:
    low = (256 - contrast) // 2
    shape = (height, width, channels)
    pixels = (
        np.random.default_rng(width * 1000 + height)
        .integers(low, low + contrast + 1, shape)
        .astype(np.uint8)
    )
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


@settings(max_examples=300)
@given(
    width=SIDES,
    height=SIDES,
    channels=st.sampled_from([1, 3]),
    target=st.tuples(st.integers(8, 48), st.integers(8, 48))
    | st.integers(8, 48).map(lambda side: (side, side)),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest"]),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 1.0, 1.1]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)
def test_pixels_equal_those_of_timm(
    width, height, channels, target, interpolation, crop_pct, crop_mode
):
    fill = tuple(round(255 * value) for value in MEAN)
    transform = ImageTransform((channels, *target), interpolation, crop_pct, crop_mode, fill)
    # With little contrast nothing is clipped at 0 or 255 between rows and columns, so that their
    # order hardly matters.
    image = noise(width, height, channels, contrast=127)
    pixels = resize_and_crop(image, transform)
    assert pixels.shape == transform.size
    assert pixels.dtype == np.uint8
    try:
        expected = timm_pixels(image, transform)
    except ValueError:  # timm fails on an image so narrow that a side of it rounds to nothing
        assert crop_mode == "border"
    else:
        exact = interpolation == "nearest" or (crop_pct >= 1 and crop_mode != "center")
        assert differences(pixels, expected).max() <= (0 if exact else 2)


def differences(pixels: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(pixels.astype(int) - expected)


@settings(max_examples=150)
@given(
    width=SIDES,
    height=SIDES,
    target=st.integers(8, 48),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    crop_pct=st.sampled_from([0.5, 0.875, 1.0]),
)
def test_a_crop_equals_resizing_the_whole_image_rows_first(
    width, height, target, interpolation, crop_pct
):
    transform = ImageTransform((3, target, target), interpolation, crop_pct, "center")
    image = noise(width, height, 3)
    resample = Image.Resampling[interpolation.upper()]
    resized = resized_size((height, width), transform)
    whole = image.resize((resized[1], height), resample).resize(resized[::-1], resample)
    expected = np.asarray(center_crop(whole, (target, target), (0, 0, 0))).transpose(2, 0, 1)
    assert differences(resize_and_crop(image, transform), expected).max() <= 2


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (1000, 300)])
def test_pixels_equal_those_of_timm_at_the_usual_size(size):
    transform = ImageTransform((3, 224, 224), "bicubic", 0.9, "center")
    width, height = size
    image = noise(width, height, 3)
    difference = differences(resize_and_crop(image, transform), timm_pixels(image, transform))
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.005


def test_a_reduced_jpeg_keeps_enough_pixels_and_moves_none():
    transform = ImageTransform((3, 224, 224), "bicubic", 0.9, "center")
    for size, expected in [
        ((500, 375), 1),
        ((1488, 1488), 2),
        ((1486, 1486), 1),
        ((1489, 1488), 1),
        ((4000, 3000), 4),
        ((3000, 4000), 4),
        ((8000, 6000), 8),
        ((8002, 6002), 2),
        ((40000, 800), 1),
    ]:
        reduction = dct_reduction(size, transform)
        assert reduction == expected
        if reduction > 1:
            assert min(size) // reduction >= 248 * MIN_REDUCED_RATIO
        # A reduced image is resized to the same size.
        reduced = (size[0] // reduction, size[1] // reduction)
        assert resized_size(reduced, transform) == resized_size(size, transform)
    nearest = ImageTransform((3, 224, 224), "nearest", 0.9, "center")
    assert dct_reduction((8000, 6000), nearest) == 1
    tall = ImageTransform((3, 256, 32), "bicubic", 1.0, "squash")
    assert dct_reduction((1600, 1600), tall) == dct_reduction((1600, 800), tall) * 2 == 2
