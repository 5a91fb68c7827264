"""The format of a file is detected by its content, and only what its pixels need is kept."""

import struct
import zlib

import pytest

from server.errors import BadImage, TooLarge, UnsupportedFormat
from server.imaging.decode import FORMATS, open_container, sniff
from tests.hostile.build import (
    box,
    chunk,
    encode,
    gif_with,
    picture,
    png_with,
    sub_blocks,
    webp_canvas,
)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_detected_by_its_signature(name: str) -> None:
    body = encode(picture(), name)
    assert sniff(body) == name
    assert open_container(body).format == name


def test_a_text_that_begins_like_a_bitmap_has_no_format() -> None:
    assert sniff(b"BMW is a car, not a bitmap") is None


def test_a_body_without_a_known_signature_is_refused() -> None:
    with pytest.raises(UnsupportedFormat):
        open_container(b"hello")


def test_png_chunks_without_pixels_are_removed() -> None:
    text = chunk(b"tEXt", b"Comment\0hello")
    container = open_container(png_with(text))
    assert container.body == encode(picture(), "PNG")


def test_a_second_frame_of_a_png_is_removed() -> None:
    still = encode(picture(), "PNG")
    frame = chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress(bytes(100)))
    end = chunk(b"IEND")
    animated = still.removesuffix(end) + frame + end
    assert open_container(animated).body == still.removesuffix(end)


def test_gif_comments_are_removed() -> None:
    comment = b"\x21\xfe" + sub_blocks(b"comment")
    assert open_container(gif_with(comment)).body == gif_with()


@pytest.mark.parametrize("between", [b"\0", bytes(1000), b"junk"])
def test_bytes_between_the_blocks_of_a_gif_are_removed(between: bytes) -> None:
    comment = b"\x21\xfe" + sub_blocks(b"comment")
    assert open_container(gif_with(between, comment, between)).body == gif_with()


def test_an_empty_extension_of_a_gif_is_removed() -> None:
    assert open_container(gif_with(b"\x21\xf9\0")).body == gif_with()


def test_a_gif_with_too_many_comments_is_too_large() -> None:
    comments = [b"\x21\xfe\0"] * 50_000
    with pytest.raises(TooLarge, match="too many parts"):
        open_container(gif_with(*comments))


def test_a_gif_that_ends_in_a_comment_is_bad() -> None:
    with pytest.raises(BadImage):
        open_container(b"GIF89a" + bytes(7) + b"\x21\xfe\xff")


def test_a_webp_names_the_canvas_that_its_decoder_allocates() -> None:
    assert open_container(webp_canvas(2**24, 3)).canvases == ((2**24, 3),)
    assert open_container(encode(picture(), "WEBP")).canvases == ()


def test_without_avif_in_pillow_an_avif_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.imaging.decode._HAS_AVIF", False)
    with pytest.raises(UnsupportedFormat, match="the body is AVIF, which is not supported"):
        open_container(box(b"ftyp", b"avif\0\0\0\0mif1"))
