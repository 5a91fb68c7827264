"""JPEG files of the usual kind have the pixels, and the errors, that they have with Pillow."""

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.photographs import encode, photograph
from server.errors import RequestError, TooLarge
from server.imaging import decode as decoding
from server.imaging.container import Frame
from server.imaging.decode import decode, decode_frame
from server.imaging.jpeg import strip_jpeg
from server.imaging.resampling import choose_library
from server.media.transforms import ImageTransform
from tests.hostile.build import segment

RGB = ImageTransform((3, 24, 24), "bicubic", 0.9, "center")
GREY = ImageTransform((1, 24, 24), "bicubic", 0.9, "center")
SQUASHED = ImageTransform((3, 24, 32), "bilinear", 1.0, "squash")

needs_library = pytest.mark.skipif(
    choose_library() is None, reason="without the compiled resampling Pillow decodes all files"
)


def outcome(body: bytes, transform: ImageTransform) -> np.ndarray | tuple[type, str]:
    try:
        return decode(body, transform, max_pixels=100_000, max_side=1000)
    except RequestError as error:
        return type(error), error.detail


def by_pillow(body: bytes, transform: ImageTransform) -> np.ndarray | tuple[type, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "decode_frame", lambda *arguments: None)
        return outcome(body, transform)


OPTIONS = st.fixed_dictionaries(
    {
        "quality": st.integers(1, 100),
        "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
        "progressive": st.booleans(),
        "optimize": st.booleans(),
        "restart_marker_blocks": st.sampled_from([0, 0, 1, 7]),
    }
)
SIDES = st.integers(1, 70)


@settings(max_examples=150)
@given(
    width=SIDES,
    height=SIDES,
    mode=st.sampled_from(["RGB", "L"]),
    options=OPTIONS,
    transform=st.sampled_from([RGB, GREY, SQUASHED]),
)
@example(width=500, height=375, mode="RGB", options={"quality": 75}, transform=RGB)
@example(width=480, height=320, mode="RGB", options={"subsampling": "4:2:0"}, transform=RGB)
@example(width=256, height=640, mode="RGB", options={"subsampling": "4:2:2"}, transform=RGB)
@example(width=640, height=800, mode="RGB", options={"progressive": True}, transform=RGB)
@example(width=480, height=320, mode="L", options={}, transform=GREY)
@example(width=501, height=199, mode="L", options={"quality": 95}, transform=GREY)
def test_pixels_equal_those_of_pillow(width, height, mode, options, transform):
    picture = photograph(width + 1, height + 1).crop((0, 0, width, height))
    body = encode(picture.convert(mode), **options)
    np.testing.assert_array_equal(outcome(body, transform), by_pillow(body, transform))


@settings(max_examples=300)
@given(
    mode=st.sampled_from(["RGB", "L"]),
    progressive=st.booleans(),
    position=st.floats(0, 1),
    garbage=st.binary(min_size=1, max_size=8),
    inserts=st.booleans(),
    share=st.sampled_from([1.0, 1.0, 0.98, 0.5]),
)
def test_a_damaged_file_is_what_it_is_with_pillow(
    mode, progressive, position, garbage, inserts, share
):
    body = encode(photograph(40, 30).convert(mode), progressive=progressive)
    start = int(position * len(body))
    end = start if inserts else start + len(garbage)
    damaged = (body[:start] + garbage + body[end:])[: int(share * len(body))]
    found = outcome(damaged, RGB)
    expected = by_pillow(damaged, RGB)
    if isinstance(expected, tuple):
        assert found == expected
    else:
        np.testing.assert_array_equal(found, expected)


@needs_library
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pillow_does_not_decode_usual_files(mode, monkeypatch):
    body = encode(photograph(40, 30).convert(mode))
    monkeypatch.setattr(Image, "open", None)
    assert isinstance(outcome(body, RGB), np.ndarray)


def test_pillow_decodes_all_files_where_it_resizes_them(monkeypatch):
    monkeypatch.setattr(decoding, "choose_library", lambda: None)
    monkeypatch.setattr(decoding, "decode_frame", None)
    assert isinstance(outcome(encode(photograph(40, 30)), RGB), np.ndarray)


def test_limits_hold_before_a_pixel_is_decoded(monkeypatch):
    monkeypatch.setattr(decoding, "decode_frame", None)
    body = encode(photograph(400, 300))
    error, text = outcome(body.replace(b"\x01\x2c\x01\x90", b"\xff\xff\xff\xff", 1), RGB)
    assert error is TooLarge
    assert text == "the image is 65535 x 65535; a side may have 1000 pixels"


def frame(body: bytes) -> Frame | None:
    return strip_jpeg(body).frame


def test_the_frame_of_a_usual_file_is_read():
    picture = photograph(40, 30)
    assert frame(encode(picture)) == Frame(40, 30, 3)
    assert frame(encode(picture, progressive=True)) == Frame(40, 30, 3)
    assert frame(encode(picture.convert("L"))) == Frame(40, 30, 1)
    comment = segment(0xFE, b"comment")
    assert frame(encode(picture).replace(b"\xff\xdb", comment + b"\xff\xdb", 1)) is not None


def unusual() -> dict[str, bytes]:
    picture = photograph(40, 30)
    body = encode(picture)
    tables = body.index(b"\xff\xdb")
    start_of_frame = body.index(b"\xff\xc0")
    frame_length = int.from_bytes(body[start_of_frame + 2 : start_of_frame + 4], "big")
    copied = body[start_of_frame : start_of_frame + 2 + frame_length]

    def with_segment(data: bytes) -> bytes:
        return body[:tables] + data + body[tables:]

    return {
        "CMYK": encode(picture.convert("CMYK")),
        "RGB": encode(picture, keep_rgb=True),
        "Adobe": with_segment(segment(0xEE, b"Adobe\0\x64\0\0\0\0\1")),
        "no JFIF": body[:2] + body[tables:],
        "two of JFIF": body[:tables] + body[2:],
        "JFXX": with_segment(segment(0xE0, b"JFXX\0\x10")),
        "short JFIF": body[:2] + segment(0xE0, b"JFIF\0\1\1\0") + body[tables:],
        "12 bits": body.replace(copied, copied[:4] + b"\x0c" + copied[5:]),
        "extended": body.replace(b"\xff\xc0", b"\xff\xc1"),
        "arithmetic codes": body.replace(b"\xff\xc0", b"\xff\xc9"),
        "two frames": body.replace(copied, copied + copied),
        "no height": body.replace(copied, copied[:5] + b"\0\0" + copied[7:]),
    }


@pytest.mark.parametrize("kind", unusual())
def test_other_files_are_left_to_pillow(kind):
    assert frame(unusual()[kind]) is None


def test_a_file_that_the_library_remarks_upon_is_left_to_pillow():
    body = encode(photograph(40, 30))
    usual = Frame(40, 30, 3)
    assert decode_frame(body, usual, 3) is not None
    assert decode_frame(body[:-2], usual, 3) is None
    assert decode_frame(body.replace(b"\xff\xda", b"\0\xff\xda", 1), usual, 3) is None
    assert decode_frame(body, Frame(30, 40, 3), 3) is None


def test_pillow_computes_grey_of_colours():
    body = encode(photograph(40, 30))
    assert decode_frame(body, Frame(40, 30, 3), 1) is None


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_large_file_is_reduced(reduction):
    body = encode(photograph(320, 240))
    pixels = decode_frame(body, Frame(320, 240, 3), 3, reduction)
    with Image.open(io.BytesIO(body)) as opened:
        opened.draft(None, (320 // reduction, 240 // reduction))
        np.testing.assert_array_equal(pixels, np.asarray(opened))


@needs_library
def test_what_pillow_resizes_is_decoded_by_pillow(monkeypatch):
    monkeypatch.setattr(decoding, "decode_frame", None)
    nearest = ImageTransform((3, 24, 24), "nearest", 0.9, "center")
    for transform in (nearest, SQUASHED):
        assert isinstance(outcome(encode(photograph(30, 90)), transform), np.ndarray)


@needs_library
def test_an_image_that_exif_turns_is_turned_by_pillow(monkeypatch):
    monkeypatch.setattr(decoding, "decode_frame", None)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    photograph(40, 30).save(file, "JPEG", exif=exif)
    assert isinstance(outcome(file.getvalue(), RGB), np.ndarray)
