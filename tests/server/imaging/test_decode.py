"""Images are decoded as a viewer shows them, or refused with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.photographs import photograph
from server.errors import BadImage, RequestError, TooLarge, UnsupportedFormat
from server.imaging.colours import to_8_bits
from server.imaging.decode import FORMATS, decode
from server.imaging.resize import dct_reduction, resize_and_crop
from server.media.transforms import ImageTransform

RGB = ImageTransform((3, 8, 8), "nearest", 1.0, "squash")
GREY = ImageTransform((1, 8, 8), "nearest", 1.0, "squash")


def encode(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(
    body: bytes, transform: ImageTransform = RGB, max_pixels: int = 1_000_000, max_side: int = 5000
) -> np.ndarray:
    return decode(body, transform, max_pixels, max_side)


def noise(size=(40, 30), mode="RGB") -> Image.Image:
    channels = len(mode)
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values, mode=None)


def color(body: bytes, transform: ImageTransform = RGB) -> tuple[int, ...]:
    """The one colour that the whole image has."""
    result = pixels(body, transform)
    assert (result == result[:, :1, :1]).all()
    return tuple(int(value) for value in result[:, 0, 0])


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_decoded(form):
    body = encode(noise(), form)
    with Image.open(io.BytesIO(body)) as image:
        expected = np.asarray(
            image.convert("RGB").resize((8, 8), Image.Resampling.NEAREST)
        ).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels(body), expected)


@pytest.mark.parametrize("form", ["TIFF", "PPM", "ICO", "TGA"])
def test_other_formats_are_refused(form):
    with pytest.raises(UnsupportedFormat, match="allowed are JPEG, PNG, WebP, GIF"):
        pixels(encode(noise(), form))


@pytest.mark.parametrize(
    "body", [b"hello", b"BMW is a car", b"\0" * 100, b"%PDF-1.7", b"<svg></svg>", b"RIFF1234WAVE"]
)
def test_a_body_that_is_not_an_image_is_refused(body):
    with pytest.raises(UnsupportedFormat):
        pixels(body)


def test_an_empty_body_is_refused():
    with pytest.raises(BadImage, match="empty"):
        pixels(b"")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_image_is_refused(form, share):
    body = encode(noise((64, 64)), form)
    with pytest.raises(BadImage):
        pixels(body[: int(len(body) * share)])


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "BMP"])
def test_a_signature_alone_is_refused(form):
    with pytest.raises(BadImage):
        pixels(encode(noise(), form)[:14])


@settings(max_examples=150)
@given(
    form=st.sampled_from(FORMATS),
    position=st.floats(0, 1),
    garbage=st.binary(min_size=1, max_size=40),
)
def test_corrupt_images_are_decoded_or_refused(form, position, garbage):
    body = bytearray(encode(noise(), form))
    start = int(position * len(body))
    body[start : start + len(garbage)] = garbage
    try:
        assert pixels(bytes(body)).shape == (3, 8, 8)
    except RequestError as error:
        assert error.status in (400, 413, 415)


def test_size_limits_are_enforced():
    body = encode(Image.new("RGB", (100, 50)))
    assert pixels(body, max_pixels=5000, max_side=100).shape == (3, 8, 8)
    with pytest.raises(TooLarge, match="100 x 50, 5000 pixels; allowed are 4999"):
        pixels(body, max_pixels=4999)
    with pytest.raises(TooLarge, match="a side may have 99"):
        pixels(body, max_side=99)


def test_limits_hold_before_a_pixel_is_decoded():
    # A header that promises 4 gigapixels, with hardly any data behind it.
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 65000, 65000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(TooLarge):
        pixels(
            b"\x89PNG\r\n\x1a\n" + header + encode(Image.new("RGB", (1, 1)))[33:], max_side=100_000
        )


def test_an_image_that_resizing_would_make_too_large_is_refused():
    center = ImageTransform((3, 224, 224), "bicubic", 0.9, "center")
    with pytest.raises(TooLarge, match="too narrow"):
        pixels(encode(Image.new("RGB", (1, 5000))), center)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_rotated_upright(orientation):
    upright = noise((8, 8))
    # What a camera stores when it is held so: the inverse of what makes the image upright.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels(encode(stored, exif=exif)), pixels(encode(upright)))


def test_broken_exif_is_ignored():
    np.testing.assert_array_equal(
        pixels(encode(noise(), exif=b"Exif\0\0nonsense")), pixels(encode(noise()))
    )


def test_transparent_pixels_become_white():
    assert color(encode(Image.new("RGBA", (9, 9), (200, 0, 0, 0)))) == (255, 255, 255)
    assert color(encode(Image.new("RGBA", (9, 9), (200, 0, 0, 255)))) == (200, 0, 0)
    assert color(encode(Image.new("LA", (9, 9), (10, 0)))) == (255, 255, 255)
    palette = Image.new("RGB", (9, 9), "red").quantize()
    assert color(encode(palette)) == (255, 0, 0)
    assert color(encode(palette, transparency=0)) == (255, 255, 255)
    assert color(encode(Image.new("RGB", (9, 9), (1, 2, 3)), transparency=(1, 2, 3))) == (
        255,
        255,
        255,
    )
    assert color(encode(Image.new("RGBA", (9, 9), (0, 0, 0, 0))), GREY) == (255,)


def test_other_modes_are_converted():
    deep = Image.fromarray(np.full((9, 9), 0x8000, np.uint16))
    assert color(encode(deep)) == (128, 128, 128)
    assert color(encode(deep), GREY) == (128,)
    assert color(encode(Image.new("1", (9, 9), 1))) == (255, 255, 255)
    assert color(encode(Image.new("L", (9, 9), 77))) == (77, 77, 77)
    assert color(encode(Image.new("RGB", (9, 9), (0, 255, 0))), GREY) == (150,)
    red, green, blue = color(encode(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG"))
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_only_the_first_frame_is_decoded(form):
    frames = [Image.new("RGB", (9, 9), name) for name in ("red", "blue")]
    assert color(
        encode(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)
    ) == (255, 0, 0)


def test_16_bits_are_scaled_and_rounded_in_every_strip():
    grey = np.arange(600 * 300, dtype=np.uint32).reshape(600, 300) % 65536
    expected = np.floor(grey / 257 + 0.5)
    assert (to_8_bits(grey.astype(np.uint16)) == expected).all()
    beyond = grey.astype(np.int32) * 3 - 5
    assert (to_8_bits(beyond) == np.floor(np.clip(beyond, 0, 65535) / 257 + 0.5)).all()


def test_an_image_too_narrow_once_it_is_upright_is_refused():
    transform = ImageTransform((3, 128, 1024), "bicubic", 1.0, "center")
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3000, 1)).save(file, "JPEG", exif=exif)
    with pytest.raises(TooLarge):
        decode(file.getvalue(), transform, 50_000_000, 16384)


@pytest.mark.parametrize(("side", "reduction"), [(432, 2), (864, 4), (1728, 8)])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(side, reduction, options):
    transform = ImageTransform((3, 64, 64), "bicubic", 0.9, "center")
    assert dct_reduction((side + 160, side), transform) == reduction
    body = encode(photograph(side + 160, side), "JPEG", quality=90, **options)
    with Image.open(io.BytesIO(body)) as whole:
        difference = np.abs(
            pixels(body, transform, 5_000_000).astype(int) - resize_and_crop(whole, transform)
        )
    assert 0 < difference.mean() < 0.5
    assert difference.max() <= 5
