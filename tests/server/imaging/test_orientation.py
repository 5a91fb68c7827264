"""The orientation is read as Pillow reads it, and nothing else of EXIF is."""

import struct
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.imaging.orientation import apply_orientation, read_exif_tag, read_orientation
from tests.hostile.build import ORIENTATION, exif


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_is_the_one_that_pillow_reads(order, value):
    tags = Image.Exif()
    tags.endian = order
    tags[0x010F] = "a maker"
    tags[ORIENTATION] = value
    tags[0x0132] = "2024:01:01 00:00:00"
    written = tags.tobytes()
    for prefix in (b"", b"Exif\0\0", b"Exif\0\0Exif\0\0"):
        assert read_orientation([prefix + written.removeprefix(b"Exif\0\0")]) == value


def test_a_long_value_is_read_like_a_short_one():
    assert read_orientation([b"MM\0*" + struct.pack(">IHHHII", 8, 1, ORIENTATION, 4, 1, 6)]) == 6


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_other_values_mean_upright(value):
    assert read_orientation([exif((ORIENTATION, 3, 1, value))]) == 1


@given(
    st.binary(max_size=60), st.sampled_from([b"", b"II*\0", b"MM\0*", b"Exif\0\0II*\0\x08\0\0\0"])
)
def test_random_bytes_give_a_valid_orientation(data, start):
    assert 1 <= read_orientation([start + data], data) <= 8


ENTRY = st.tuples(
    st.sampled_from([ORIENTATION, ORIENTATION, 0x010F, 0x0113]),
    st.sampled_from([2, 3, 4, 8, 9, 13, 99]),
    st.integers(0, 3),
    st.integers(0, 8) | st.integers(38, 70),
)


@settings(max_examples=300)
@given(
    entries=st.lists(ENTRY, max_size=4),
    magic=st.sampled_from([b"II*\0", b"II\0*"]),
)
def test_any_directory_is_read_as_pillow_reads_it(entries, magic):
    values = b"".join(struct.pack("<H", number % 9) for number in range(40))
    written = magic + exif(*entries, data=values)[4:]
    tags = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tags.load(written)
        expected = tags.get(ORIENTATION)
    if not isinstance(expected, str):  # text is no orientation
        assert read_exif_tag(written) == expected


def test_values_beyond_the_end_are_none():
    assert read_exif_tag(exif((ORIENTATION, 3, 3, 26), data=struct.pack("<HHH", 6, 0, 0))) == 6
    assert read_exif_tag(exif((ORIENTATION, 3, 3, 26), data=struct.pack("<HH", 6, 0))) is None
    assert read_exif_tag(exif((ORIENTATION, 3, 1, 6))[:20]) is None


def test_the_first_directory_that_has_an_orientation_counts():
    none = exif((0x0113, 3, 1, 8))
    broken = b"nonsense"
    assert (
        read_orientation([none, broken, exif((ORIENTATION, 3, 1, 6)), exif((ORIENTATION, 3, 1, 3))])
        == 6
    )
    assert read_orientation([exif((ORIENTATION, 3, 1, 0)), exif((ORIENTATION, 3, 1, 3))]) == 1


@pytest.mark.parametrize("form", ['tiff:Orientation="6"', "<tiff:Orientation>6</tiff:Orientation>"])
def test_xmp_counts_where_exif_has_no_orientation(form):
    xmp = f"<x:xmpmeta>{form}</x:xmpmeta>".encode()
    assert read_orientation([], xmp) == 6
    assert read_orientation([exif((0x0113, 3, 1, 8))], xmp) == 6
    assert read_orientation([exif((ORIENTATION, 3, 1, 1))], xmp) == 1


def test_an_upright_image_is_not_copied():
    image = Image.new("L", (2, 3))
    assert apply_orientation(image, 1) is image
    assert apply_orientation(image, 6).size == (3, 2)
