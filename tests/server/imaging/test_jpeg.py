"""Metadata is removed from a JPEG, its orientation is kept, and its scans are limited."""

import pytest

from server.errors import BadImage, TooLarge
from server.imaging.jpeg import strip_jpeg
from tests.hostile.attacks import scans
from tests.hostile.build import encode, exif, jpeg_with, picture, segment

ORIENTATION_TAG = 0x0112
SHORT = 3
ROTATED = 6
APP1 = 0xE1
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
    data = exif((ORIENTATION_TAG, SHORT, 1, ROTATED))
    container = strip_jpeg(jpeg_with(segment(APP1, b"Exif\0\0" + data)))
    assert container.orientation == ROTATED
    assert b"Exif" not in container.body


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
