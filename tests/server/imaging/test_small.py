"""Which pictures count as small, and that none does whose decoding would take long."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.imaging.decode import open_container
from server.imaging.small import MAX_SMALL_BYTES, is_small


def encode(side: int, file_format: str, mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side, side), 90).save(file, file_format, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize(("side", "expected"), [(1, True), (28, True), (64, True), (65, False)])
def test_a_picture_is_small_by_its_pixels(file_format, mode, side, expected):
    assert is_small(encode(side, file_format, mode)) is expected


def test_a_picture_is_small_by_its_bytes():
    small = encode(8, "PNG")
    for size in (MAX_SMALL_BYTES, MAX_SMALL_BYTES + 1):
        assert is_small(small + bytes(size - len(small))) is (size == MAX_SMALL_BYTES)


@pytest.mark.parametrize("file_format", ["WEBP", "GIF", "BMP"])
def test_other_formats_are_not(file_format):
    assert not is_small(encode(8, file_format))


@pytest.mark.parametrize("body", [b"", b"hello", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_not(body):
    assert not is_small(body)


def test_a_progressive_jpeg_is_not_for_it_may_have_many_scans():
    assert not is_small(encode(28, "JPEG", progressive=True))


def test_a_second_header_of_a_png_may_say_another_size():
    body = encode(8, "PNG")
    large = chunk(b"IHDR", struct.pack(">IIBBBBB", 5000, 5000, 8, 2, 0, 0, 0))
    assert not is_small(body[:33] + large + body[33:])


def test_a_png_in_many_pieces_is_not():
    body = encode(8, "PNG")
    assert not is_small(body[:33] + chunk(b"IDAT", b"") * 20 + body[33:])


def test_a_jpeg_may_not_hide_its_header():
    body = encode(200, "JPEG")
    small_frame = b"\xff\xc0\x00\x11\x08\x00\x08\x00\x08"
    assert not is_small(body[:2] + segment(0xFE, small_frame) + body[2:])
    many = body[:2] + segment(0xFE, b"") * 20 + encode(8, "JPEG")[2:]
    assert not is_small(many)


def test_a_jpeg_with_a_thumbnail_has_a_second_scan():
    thumbnail = segment(0xE1, b"Exif\0\0" + encode(8, "JPEG"))
    body = encode(8, "JPEG")
    assert is_small(body)
    assert not is_small(body[:2] + thumbnail + body[2:])


@given(st.data())
def test_no_change_makes_a_large_picture_small(data):
    """Whatever is cut out of a large picture or put into it, what Pillow would decode is small."""
    body = bytearray(encode(200, data.draw(st.sampled_from(["PNG", "JPEG"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, min(700, len(body) - 1)))
        body[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    if not is_small(bytes(body)):
        return
    stripped = open_container(bytes(body))
    try:
        with Image.open(io.BytesIO(stripped.body), formats=(stripped.format,)) as opened:
            assert np.prod(opened.size) <= 64 * 64
    except (OSError, SyntaxError, ValueError):
        return  # refused as corrupt
