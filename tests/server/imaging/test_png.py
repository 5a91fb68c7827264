"""What turns a PNG is found in all its places, and inflates within bounds."""

import random
import zlib

import pytest

from server.imaging.png import strip_png
from tests.hostile.build import chunk, deflated_zeros, encode, picture, png_with
from tests.pictures.orientations import directory, png_chunks

RAW = b"Raw profile type exif\0"
XMP = b"XML:com.adobe.xmp\0"
PROFILE = b"\nexif\n      38\n" + directory(6).hex().encode() + b"\n"


def orientation(*chunks: bytes) -> int | None:
    stripped = strip_png(png_with(*chunks))
    assert stripped.body == encode(picture(), "PNG")
    return stripped.orientation


def test_every_place_is_read() -> None:
    choose = random.Random(0)
    found = dict(png_chunks(6, choose) for _ in range(200))
    assert len(found) == 11  # all that there are to choose from
    for name, chunks in found.items():
        assert orientation(chunks) == 6, name


def test_text_after_the_pixels_counts_too() -> None:
    end = chunk(b"IEND")
    body = encode(picture(), "PNG").removesuffix(end) + chunk(b"tEXt", RAW + PROFILE) + end
    assert strip_png(body).orientation == 6


def test_exif_goes_before_a_raw_profile_and_that_before_xmp() -> None:
    raw = chunk(b"tEXt", RAW + PROFILE)
    xmp = chunk(b"tEXt", XMP + b'tiff:Orientation="3"')
    assert orientation(raw, chunk(b"eXIf", directory(8)), xmp) == 8
    assert orientation(xmp, raw) == 6


def test_of_two_chunks_of_one_name_the_last_counts() -> None:
    assert orientation(chunk(b"eXIf", directory(6)), chunk(b"eXIf", directory(8))) == 8
    assert orientation(chunk(b"zTXt", RAW + b"\0junk"), chunk(b"tEXt", RAW + PROFILE)) == 6


@pytest.mark.parametrize(
    "broken",
    [
        chunk(b"tEXt", RAW),
        chunk(b"tEXt", RAW + b"\nexif\n4\nno digits"),
        chunk(b"tEXt", RAW + b"\nexif\n4\nabc"),
        chunk(b"tEXt", b"Raw profile type exif"),
        chunk(b"zTXt", RAW),
        chunk(b"zTXt", RAW + b"\0junk"),
        chunk(b"zTXt", RAW + b"\1" + zlib.compress(PROFILE)),
        chunk(b"iTXt", RAW + b"\1\0"),
        chunk(b"iTXt", RAW + b"\1\0\0\0junk"),
        chunk(b"iTXt", XMP + b"\0"),
        chunk(b"zTXt", b"exif\0\0" + zlib.compress(directory(6))),
    ],
)
def test_broken_text_turns_nothing(broken: bytes) -> None:
    assert orientation(broken) == 1


def test_text_inflates_to_a_megabyte_once() -> None:
    bomb = chunk(b"zTXt", XMP + b"\0" + deflated_zeros(10))
    assert orientation(*[bomb] * 200) == 1
    long = b" " * (1 << 20) + b'tiff:Orientation="6"'
    assert orientation(chunk(b"zTXt", XMP + b"\0" + zlib.compress(long))) == 1
    assert orientation(chunk(b"zTXt", XMP + b"\0" + zlib.compress(long[100:]))) == 6


@pytest.mark.parametrize("missing", [1, 4, 5, 11, 12])
def test_the_last_chunk_may_be_cut_off(missing: int) -> None:
    body = encode(picture(), "PNG")
    assert strip_png(body[:-missing]).body.startswith(body[:-12])
