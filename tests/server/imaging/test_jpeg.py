"""Metadata is removed from a JPEG, its orientation is kept, and its scans are limited."""

import pytest

from server.errors import BadImage, TooLarge
from server.imaging.jpeg import strip_jpeg
from tests.hostile.attacks import scans
from tests.hostile.build import (
    APP1,
    ORIENTATION,
    SHORT,
    encode,
    exif,
    jpeg_with,
    picture,
    segment,
)

ROTATED = 6
APP2 = 0xE2
COMMENT = 0xFE


@pytest.mark.parametrize("marker", [APP1, APP2, COMMENT])
def test_metadata_is_removed(marker: int) -> None:
    container = strip_jpeg(jpeg_with(segment(marker, b"metadata")))
    assert container.body == jpeg_with()


def test_what_follows_the_first_scan_is_kept() -> None:
    body = jpeg_with(progressive=True) + b"a film"
    assert strip_jpeg(body).body == body


def test_the_orientation_is_read_before_exif_is_removed() -> None:
    data = exif((ORIENTATION, SHORT, 1, ROTATED))
    container = strip_jpeg(jpeg_with(segment(APP1, b"Exif\0\0" + data)))
    assert container.orientation == ROTATED
    assert b"Exif" not in container.body


def exif_segment(*entries: tuple[int, int, int, int], data: bytes = b"") -> bytes:
    return segment(APP1, b"Exif\0\0" + exif(*entries, data=data))


def test_the_first_segment_that_has_an_orientation_counts() -> None:
    first = exif_segment((ORIENTATION, SHORT, 1, ROTATED))
    other = exif_segment((ORIENTATION, SHORT, 1, 3))
    none = exif_segment((0x010F, SHORT, 1, 1))
    for segments in ([first, other], [first, none], [none, first], [none, first, other]):
        assert strip_jpeg(jpeg_with(*segments)).orientation == ROTATED


def test_exif_may_go_on_in_the_next_segment() -> None:
    values = exif((ORIENTATION, SHORT, 3, 26), data=b"\x06\0\x01\0\x01\0")
    pieces = [segment(APP1, b"Exif\0\0" + piece) for piece in (values[:27], values[27:])]
    assert strip_jpeg(jpeg_with(*pieces)).orientation == ROTATED


def test_xmp_counts_without_exif() -> None:
    xmp = segment(APP1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>')
    assert strip_jpeg(jpeg_with(xmp)).orientation == ROTATED


@pytest.mark.parametrize("marker", [0x01, 0xD0, 0xD7])
def test_a_marker_without_length_outside_a_scan_is_removed(marker: int) -> None:
    assert strip_jpeg(jpeg_with(bytes([0xFF, marker]))).body == jpeg_with()
    for before in (b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xda"):
        body = jpeg_with().replace(before, bytes([0xFF, marker]) + before, 1)
        assert strip_jpeg(body).body == jpeg_with()


def test_a_length_below_its_own_is_passed_over() -> None:
    assert strip_jpeg(jpeg_with(b"\xff\xe1\0\0")).body == jpeg_with()
    kept = b"\xff\xe0\0\1"
    assert strip_jpeg(jpeg_with(kept)).body == jpeg_with(kept)


@pytest.mark.parametrize("progressive", [True, False])
def test_scans_are_limited(progressive: bool) -> None:
    assert strip_jpeg(scans(50, progressive)).format == "JPEG"
    with pytest.raises(TooLarge, match="more than 100 scans"):
        strip_jpeg(scans(200, progressive))


def test_bytes_behind_the_image_are_no_scans() -> None:
    body = encode(picture(), "JPEG", progressive=True) + b"\xff\xda" * 1000
    assert strip_jpeg(body).body == body


def test_a_jpeg_without_a_scan_is_bad() -> None:
    with pytest.raises(BadImage):
        strip_jpeg(b"\xff\xd8\xff\xd9")


def test_a_segment_beyond_the_end_is_truncated() -> None:
    with pytest.raises(IndexError):
        strip_jpeg(b"\xff\xd8\xff\xe0\x00")
