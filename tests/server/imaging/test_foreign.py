"""A file of another format is refused by the name of its format."""

import gzip

import pytest

from server.errors import UnsupportedFormat
from server.imaging.decode import FORMATS, open_container
from server.imaging.foreign import name_format
from tests.hostile.build import box, encode, picture


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("TIFF", "TIFF"),
        ("PPM", "a Netpbm image"),
        ("ICO", "ICO"),
        ("PDF", "PDF"),
        ("EPS", "PostScript"),
        ("SGI", "SGI"),
        ("JPEG2000", "JPEG 2000"),
        ("DDS", "DDS"),
        ("QOI", "QOI"),
        pytest.param(
            "AVIF",
            "AVIF",
            marks=pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow has no AVIF"),
        ),
    ],
)
def test_what_pillow_writes_is_named(form: str, name: str) -> None:
    assert name_format(encode(picture(), form)) == name


@pytest.mark.parametrize(
    ("brands", "name"),
    [
        (b"heic\0\0\0\0mif1heic", "HEIC"),
        (b"mif1\0\0\0\0mif1heix", "HEIC"),
        (b"heim\0\0\0\0mif1", "HEIC"),
        (b"mif1\0\0\0\0miaf", "HEIF"),
        (b"crx \0\0\0\1isom", "a camera's raw file"),
        (b"avif\0\0\0\0mif1", "AVIF"),
        (b"qt  \0\0\0\0qt  ", "QuickTime video"),
        (b"isom\0\0\2\0mp41", "MP4 or another ISO media file"),
    ],
)
def test_an_iso_media_file_is_named_by_its_brands(brands: bytes, name: str) -> None:
    assert name_format(box(b"ftyp", brands) + box(b"mdat")) == name


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"<?xml version='1.0'?>\n<!-- a -->\n<svg/>", "SVG"),
        (b"\xef\xbb\xbf <html>", "HTML"),
        (b"<?xml version='1.0'?><x/>", "XML"),
        (b"RIFF\0\0\0\0WAVE", "WAV"),
        (bytes(128) + b"DICM", "DICOM"),
        (gzip.compress(b"", mtime=0), "gzip"),  # the time would change the name of the test
        (b"P5 is text", "a Netpbm image"),
        (b"P5s", None),
        (b"RIFF\0\0\0\0????", None),
        (b"<p>", None),
        (b"hello", None),
        (b"", None),
    ],
)
def test_others_are_named_by_how_they_begin(body: bytes, name: str | None) -> None:
    assert name_format(body) == name


def test_the_answer_says_what_was_found_and_what_is_allowed() -> None:
    heic = box(b"ftyp", b"heic\0\0\0\0mif1heic")
    with pytest.raises(
        UnsupportedFormat, match=r"the body is HEIC, which is not.*; allowed are JPEG"
    ):
        open_container(heic)
    with pytest.raises(UnsupportedFormat, match="the body is not an image of a supported format;"):
        open_container(b"hello")
