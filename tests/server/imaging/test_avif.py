"""An AVIF is decoded as Pillow decodes it, and what its decoder allocates is limited."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from server.errors import BadImage, TooLarge
from server.imaging.av1 import coded_sizes
from server.imaging.avif import is_avif, open_avif
from server.imaging.colours import convert
from server.imaging.container import PartCollector
from server.imaging.decode import FORMATS, decode
from server.imaging.resize import resize_and_crop
from server.media.transforms import ImageTransform
from tests.hostile.attacks import avif_that_declares
from tests.hostile.build import (
    ORIENTATION,
    SHORT,
    avif_of,
    avif_with_exif,
    box,
    encode,
    exif,
    picture,
)
from tests.pictures.orientations import tags

pytestmark = pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow has no AVIF")

RGB = ImageTransform((3, 28, 28), "bicubic", 0.9, "center")
XMP = b'<x:xmpmeta tiff:Orientation="6"/>'


def pixels(body: bytes) -> np.ndarray:
    return decode(body, RGB, 1_000_000, 4000)


def by_pillow(body: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(body)) as opened:
        return resize_and_crop(convert(ImageOps.exif_transpose(opened), "RGB"), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_avif_is_turned_by_its_own_properties(mode, orientation):
    body = encode(picture(mode=mode), "AVIF", exif=tags(orientation))
    np.testing.assert_array_equal(pixels(body), by_pillow(body))
    upright = encode(picture(mode=mode), "AVIF")
    assert np.array_equal(pixels(body), pixels(upright)) == (orientation == 1)


@pytest.mark.parametrize("tag", [1, ORIENTATION])
@pytest.mark.parametrize("xmp", [b"", XMP])
def test_exif_turns_nothing_and_xmp_only_without_exif(tag, xmp):
    body = avif_with_exif(exif((tag, SHORT, 1, 6)), xmp=xmp)
    np.testing.assert_array_equal(pixels(body), by_pillow(body))
    turned = not np.array_equal(pixels(body), pixels(encode(picture(), "AVIF")))
    assert turned == (tag != ORIENTATION and xmp == XMP)


def test_broken_exif_is_ignored():
    body = avif_with_exif(b"nonsense" * 10)
    np.testing.assert_array_equal(pixels(body), pixels(encode(picture(), "AVIF")))


def test_exif_is_hidden_from_the_decoder():
    stripped = open_avif(avif_with_exif(exif((1, SHORT, 1, 1))))
    with Image.open(io.BytesIO(stripped.body)) as opened:
        assert "exif" not in opened.info


def test_the_primary_picture_of_an_animation_is_decoded():
    still = picture()
    body = encode(still, "AVIF", save_all=True, append_images=[Image.new("RGB", still.size)] * 3)
    with Image.open(io.BytesIO(open_avif(body).body)) as opened:
        assert getattr(opened, "n_frames", 1) == 1
    np.testing.assert_array_equal(pixels(body), by_pillow(body))


def test_an_animation_without_a_still_picture_is_refused():
    with pytest.raises(BadImage, match="no still picture"):
        pixels(box(b"ftyp", b"avis\0\0\0\0avis") + box(b"moov", bytes(100)))


@pytest.mark.parametrize("brand", [b"mif1", b"miaf"])
def test_a_file_may_name_avif_among_its_other_brands(brand):
    body = encode(picture(), "AVIF")
    renamed = body[:8] + brand + body[12:]
    assert is_avif(renamed)
    np.testing.assert_array_equal(pixels(renamed), pixels(body))


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (641, 7), (1024, 1025)])
@pytest.mark.parametrize("options", [{}, {"save_all": True}])
def test_the_coded_size_is_the_decoded_one_or_larger(size, options):
    if options:
        options = options | {"append_images": [Image.new("L", size, 9)]}
    body = encode(Image.new("L", size), "AVIF", speed=10, **options)
    declared, coded = open_avif(body).canvases
    assert declared == size
    # A frame of a still picture has one size; others may replace it by any that has as many bits.
    assert all(given <= found < 2 * given + 1 for given, found in zip(size, coded, strict=True))
    assert options or coded == size


def reduced_header(width: int, height: int) -> bytes:
    """A sequence header of a still picture (AV1 specification, section 5.5.1)."""
    bits = f"0001100000{15:04b}{15:04b}{width - 1:016b}{height - 1:016b}"
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def unit(unit_type: int, data: bytes) -> bytes:
    return bytes([unit_type << 3 | 2, len(data)]) + data


def sizes(data: bytes) -> list[tuple[int, int]]:
    return coded_sizes(data, PartCollector(data))


def test_each_frame_has_the_size_of_the_header_before_it():
    small = unit(1, reduced_header(3, 4))
    large = unit(1, reduced_header(65536, 1))
    frame = unit(6, b"data")
    assert sizes(unit(2, b"") + small + frame + unit(5, b"metadata") + frame) == [(3, 4), (3, 4)]
    assert sizes(small + frame + large + unit(3, b"")) == [(3, 4), (65536, 1)]
    without_length = bytes([6 << 3]) + b"data to the end"
    assert sizes(small + without_length) == [(3, 4)]


@pytest.mark.parametrize(
    "data", [unit(6, b"data"), unit(1, b"\x18"), b"\x0a", b"\x0a" + b"\xff" * 9]
)
def test_data_without_a_size_are_truncated(data):
    with pytest.raises(IndexError):
        sizes(data)


def test_frames_are_limited():
    frames = unit(1, reduced_header(3, 4)) + unit(6, b"") * 9
    with pytest.raises(TooLarge, match="more than 8 frames"):
        open_avif(avif_of(frames, 1))


def test_pictures_together_are_limited():
    data = unit(1, reduced_header(1000, 1000)) + unit(6, b"")
    with pytest.raises(BadImage):  # by the decoder: it has no primary picture
        pixels(avif_of(data, 8))
    with pytest.raises(TooLarge, match="too many pictures"):
        pixels(avif_of(data, 9))


@pytest.mark.parametrize(
    "sides", [b"\0" + struct.pack(">HH", 300, 200), b"\1" + struct.pack(">II", 300, 200)]
)
def test_a_grid_has_the_size_that_it_declares(sides):
    grid = b"\0" + sides[:1] + b"\0\0" + sides[1:]
    assert open_avif(avif_of(grid, 1, b"grid")).canvases == ((300, 200),)
    with pytest.raises(TooLarge, match="300 x 200"):
        decode(avif_of(grid, 1, b"grid"), RGB, 50_000, 4000)


def test_a_picture_without_a_side_is_bad():
    width, height = picture().size
    for sides in ((0, height), (width, 0)):
        with pytest.raises(BadImage):
            pixels(avif_that_declares(encode(picture(), "AVIF"), *sides))
