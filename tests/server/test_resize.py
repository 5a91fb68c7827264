"""What the model sees is, byte for byte, what timm's evaluation transform gives."""

import numpy as np
import pytest
import timm.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.messages import Transform
from server.resize import resize_and_crop

MEAN = (0.485, 0.456, 0.406)
SIDES = st.integers(1, 160)


def noise(width: int, height: int, channels: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def timm_pixels(image: Image.Image, transform: Transform) -> np.ndarray:
    channels = transform.size[0]
    reference = timm.data.create_transform(
        transform.size,
        is_training=False,
        use_prefetcher=True,  # uint8, before normalisation
        interpolation=transform.interpolation,
        crop_pct=transform.crop_pct,
        crop_mode=transform.crop_mode,
        mean=MEAN[:channels],
    )
    return reference(image).numpy()


@settings(max_examples=300)
@given(
    width=SIDES,
    height=SIDES,
    channels=st.sampled_from([1, 3]),
    target=st.tuples(st.integers(8, 48), st.integers(8, 48)) | st.integers(8, 48).map(lambda side: (side, side)),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest"]),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 1.0, 1.1]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)
def test_equals_timm(width, height, channels, target, interpolation, crop_pct, crop_mode):
    fill = tuple(round(255 * value) for value in MEAN)
    transform = Transform((channels, *target), interpolation, crop_pct, crop_mode, fill)
    image = noise(width, height, channels)
    pixels = resize_and_crop(image, transform)
    assert pixels.shape == transform.size
    assert pixels.dtype == np.uint8
    try:
        expected = timm_pixels(image, transform)
    except ValueError:  # timm fails on an image so narrow that a side of it rounds to nothing
        assert crop_mode == "border"
    else:
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (1000, 300)])
def test_equals_timm_at_the_usual_size(size):
    transform = Transform((3, 224, 224), "bicubic", 0.9, "center")
    image = noise(*size, 3)
    np.testing.assert_array_equal(resize_and_crop(image, transform), timm_pixels(image, transform))
