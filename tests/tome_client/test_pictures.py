"""What the client sends for a Pillow image, an array and a file, decoded again by Pillow."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageCms

from tests.server.conftest import ROOT
from tests.server.wire import SNEAKER
from tome_client.pictures import encode

GRADIENT = Image.radial_gradient("L").resize((24, 16))
COLOURS = Image.merge("RGB", (GRADIENT, GRADIENT.rotate(180), Image.new("L", GRADIENT.size, 90)))


def decoded(image: Any) -> np.ndarray:
    """The pixels that a reader of the encoded image finds."""
    with Image.open(io.BytesIO(encode(image))) as opened:
        assert opened.format == "PNG"
        return np.asarray(opened)


@pytest.mark.parametrize(
    ("mode", "sent_as"),
    [
        ("1", "1"),
        ("L", "L"),
        ("LA", "LA"),
        ("La", "LA"),
        ("P", "P"),
        ("PA", "RGBA"),
        ("RGB", "RGB"),
        ("RGBX", "RGB"),
        ("RGBA", "RGBA"),
        ("RGBa", "RGBA"),
        ("CMYK", "RGB"),
        ("YCbCr", "RGB"),
        ("HSV", "RGB"),
    ],
)
def test_every_mode_is_sent_as_pillow_shows_it(mode: str, sent_as: str) -> None:
    source = COLOURS.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB"))
    image = source.convert(mode)
    with Image.open(io.BytesIO(encode(image))) as opened:
        assert opened.mode == sent_as
        found = np.asarray(opened.convert("RGBA"))
    expected = image.convert(sent_as).convert("RGBA")
    assert (found == np.asarray(expected)).all()


def test_lab_is_sent_in_the_colours_of_the_screen() -> None:
    lab = ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(
        COLOURS, ImageCms.createProfile("sRGB"), lab, outputMode="LAB"
    )
    distance = np.abs(decoded(image).astype(int) - np.asarray(COLOURS))
    assert distance.mean() < 2  # 8 bits of L, a and b do not tell all colours apart


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_up_to_255_are_8_bits(mode: str) -> None:
    assert (decoded(GRADIENT.convert(mode)) == np.asarray(GRADIENT)).all()


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "I;16L", "I;16B"])
def test_larger_numbers_are_16_bits(mode: str) -> None:
    values = np.arange(24 * 16, dtype=np.int32).reshape(16, 24) * 170
    image = Image.fromarray(values)
    if mode != "I":
        image = image.convert("F" if mode == "F" else "I;16")
    if mode.startswith("I;16") and mode != "I;16":
        dtype = "<u2" if mode == "I;16L" else ">u2"
        image = Image.frombytes(mode, image.size, values.astype(dtype).tobytes())
    assert image.mode == mode
    assert (decoded(image) == values).all()


def test_floats_up_to_1_are_fractions() -> None:
    assert decoded(Image.new("F", (2, 2), 1.0)).tolist() == [[255, 255], [255, 255]]
    assert decoded(Image.new("F", (1, 1), 0.4)).tolist() == [[102]]


@pytest.mark.parametrize("value", [-1, 65536])
def test_numbers_without_a_scale_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"mode I has values from {value} to {value}; scale them"):
        encode(Image.new("I", (2, 2), value))


def test_an_opened_image_keeps_the_orientation_of_its_file() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a maker"
    file = io.BytesIO()
    COLOURS.save(file, "JPEG", exif=exif)
    opened = Image.open(file)
    sent = Image.open(io.BytesIO(encode(opened))).getexif()
    assert dict(sent) == {0x0112: 6}
    assert dict(opened.getexif())[0x010F] == "a maker"
    turned = opened.rotate(90, expand=True)  # by hand: its pixels are what is meant
    assert not Image.open(io.BytesIO(encode(turned))).getexif()


@given(
    arrays(
        st.sampled_from(["u1", "<u2", ">u2"]),
        st.one_of(
            array_shapes(min_dims=2, max_dims=2, max_side=5),
            st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)),
        ),
    )
)
def test_an_array_is_sent_as_it_is(array: np.ndarray) -> None:
    channels = array.shape[2] if array.ndim == 3 else 1
    found = decoded(array)
    expected = array.reshape(found.shape) if channels == 1 else array
    if array.dtype.itemsize == 2 and channels > 1:
        expected = array >> 8  # Pillow keeps the high bytes of colours,
        if channels == 2:  # and repeats grey that has alpha
            expected = expected[..., [0, 0, 0, 1]]
    assert (found == expected).all()


def test_true_is_white() -> None:
    mask = np.asarray(COLOURS)[..., 0] > 100
    assert (decoded(mask) == 255 * mask.astype("u1")).all()


def test_arrays_of_any_layout_and_tensors_are_taken() -> None:
    pixels = np.asarray(COLOURS)
    for array in (pixels[::-1, ::2], np.asfortranarray(pixels), torch.tensor(pixels)):
        assert (decoded(array) == np.asarray(array)).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3)), "not float64; scale it"),
        (np.zeros((4, 4), int), "not int64; convert it"),
        (np.full((4, 4), "x"), "not <U1"),
    ],
)
def test_an_array_of_another_dtype_is_an_error_that_says_what_to_do(
    array: np.ndarray, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        encode(array)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 24, 16), r"not \(3, 24, 16\); if its channels come first, pass array.transpose"),
        ((2, 24, 16, 3), "several images are passed to classify_many"),
        ((24, 16, 5), "1 to 4 channels"),
        ((24,), "must have the shape"),
        ((), "must have the shape"),
        ((0, 16, 3), r"not \(0, 16, 3\)"),
    ],
)
def test_an_array_of_another_shape_is_an_error_that_says_what_to_do(
    shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode(np.zeros(shape, np.uint8))


def test_a_file_is_read_from_its_position_or_from_its_start_if_it_is_at_its_end() -> None:
    file = io.BytesIO(b"xx" + SNEAKER)
    file.seek(2)
    assert encode(file) == SNEAKER
    written = io.BytesIO()
    written.write(SNEAKER)
    assert encode(written) == SNEAKER


def test_a_file_without_bytes_is_an_error_that_says_what_to_do() -> None:
    class Asynchronous:
        async def read(self) -> bytes:
            return b""

    with pytest.raises(ValueError, match="is empty"):
        encode(io.BytesIO())
    with pytest.raises(TypeError, match="open it with the mode 'rb'"):
        encode(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="returns coroutine, not bytes; pass the bytes"):
        encode(Asynchronous())  # type: ignore[arg-type]


def test_an_array_needs_no_pillow() -> None:
    code = """import sys, numpy
sys.modules["PIL"] = None
from tome_client.pictures import encode
print(encode(numpy.zeros((2, 2), "uint8"))[:4])"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(b"\x89PNG")
