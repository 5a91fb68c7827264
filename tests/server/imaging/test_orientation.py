"""The orientation is read as Pillow reads it, and nothing else of EXIF is."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.imaging.orientation import apply_orientation, read_orientation


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_is_the_one_that_pillow_reads(order, value):
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "a maker"
    exif[0x0112] = value
    exif[0x0132] = "2024:01:01 00:00:00"
    written = exif.tobytes()
    assert read_orientation(written) == read_orientation(written.removeprefix(b"Exif\0\0")) == value


def test_a_long_value_is_read_like_a_short_one():
    assert read_orientation(b"MM\0*" + struct.pack(">IHHHII", 8, 1, 0x0112, 4, 1, 6)) == 6


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_other_values_mean_upright(value):
    assert read_orientation(b"II*\0" + struct.pack("<IHHHIHH", 8, 1, 0x0112, 3, 1, value, 0)) == 1


@given(
    st.binary(max_size=60), st.sampled_from([b"", b"II*\0", b"MM\0*", b"Exif\0\0II*\0\x08\0\0\0"])
)
def test_random_bytes_give_a_valid_orientation(data, start):
    assert 1 <= read_orientation(start + data) <= 8


def test_an_upright_image_is_not_copied():
    image = Image.new("L", (2, 3))
    assert apply_orientation(image, 1) is image
    assert apply_orientation(image, 6).size == (3, 2)
