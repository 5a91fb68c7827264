"""Bitmaps are checked by their header, and short palettes completed."""

import io

import numpy as np
import pytest
from PIL import Image

from server.errors import UnsupportedFormat
from server.imaging.bmp import is_bmp, open_bmp
from server.imaging.decode import decode
from server.media.transforms import ImageTransform
from tests.hostile.build import bmp
from tests.pictures.bmp import BGRA, Bmp, write_bmp

BLACK_AND_WHITE = np.array([[0] * 3, [255] * 3], np.uint8)
PIXELS = np.random.default_rng(0).integers(0, 2, (5, 7)).astype(np.uint32)
SAME_SIZE = ImageTransform((3, 5, 7), "nearest", 1.0, "squash")


def shown(body: bytes) -> np.ndarray:
    return decode(body, SAME_SIZE, 1000, 100).transpose(1, 2, 0)


def test_a_bitmap_is_known_by_the_size_of_its_header() -> None:
    assert is_bmp(bmp(4, 4, 24, bytes(48)))
    assert not is_bmp(b"BMW is a car, not a bitmap")


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_palette_of_black_and_white_does_not_change_the_bits_of_a_pixel(bits: int) -> None:
    body = write_bmp(Bmp(PIXELS, bits, palette=BLACK_AND_WHITE))
    np.testing.assert_array_equal(shown(body), BLACK_AND_WHITE[PIXELS])


def test_a_palette_of_greys_does_not_change_the_bits_of_a_pixel() -> None:
    greys = np.arange(16, dtype=np.uint8)[:, None].repeat(3, axis=1)
    pixels = PIXELS * 15
    np.testing.assert_array_equal(shown(write_bmp(Bmp(pixels, 4, palette=greys))), greys[pixels])


def test_a_colour_beyond_the_palette_is_black() -> None:
    body = write_bmp(Bmp(PIXELS * 3, 8, palette=BLACK_AND_WHITE[::-1]))
    with Image.open(io.BytesIO(open_bmp(body).body)) as opened:
        assert np.array_equal(np.asarray(opened.convert("L")) == 255, PIXELS == 0)


def with_alpha(pixels: np.ndarray, header: int) -> bytes:
    """A bitmap of ``pixels uint8 (H, W, 4)``, blue first."""
    return write_bmp(Bmp(pixels.view("<u4")[..., 0], 32, header, masks=BGRA))


@pytest.mark.parametrize("header", [56, 108, 124])
def test_alpha_that_is_zero_everywhere_is_none(header: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    pixels[..., 3] = 0
    red_first = pixels[..., 2::-1]
    np.testing.assert_array_equal(shown(with_alpha(pixels, header)), red_first)
    pixels[2, 3, 3] = 255
    only_one = np.full_like(red_first, 255)
    only_one[2, 3] = red_first[2, 3]
    np.testing.assert_array_equal(shown(with_alpha(pixels, header)), only_one)


@pytest.mark.parametrize(("compression", "bits"), [(1, 8), (2, 4)])
def test_run_lengths_are_refused(compression: int, bits: int) -> None:
    with pytest.raises(UnsupportedFormat, match="run lengths"):
        open_bmp(bmp(4, 4, bits, bytes(16), compression, palette=bytes(64)))


@pytest.mark.parametrize("compression", [4, 5, 6])
def test_other_compressions_are_refused_by_name(compression: int) -> None:
    with pytest.raises(UnsupportedFormat, match="compression is not supported"):
        open_bmp(bmp(4, 4, 32, bytes(64), compression))
