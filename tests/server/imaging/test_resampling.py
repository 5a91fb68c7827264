"""The compiled resampling equals Pillow's bit for bit, or Pillow resizes."""

import ctypes
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.memory import megabytes
from server.imaging import resampling
from server.imaging.resampling import FILTERS, LIBRARIES, call, choose_library, load
from server.imaging.resize import resize_and_crop, to_planes
from server.media.transforms import ImageTransform

TRANSFORM = ImageTransform((3, 24, 24), "bicubic", 0.9, "center")


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    found = load(request.param)
    if found is None:
        pytest.skip(f"{request.param} is not compiled, or this processor cannot run it")
    return found


@pytest.fixture
def chosen_anew():
    """The library is chosen within the test, and again after it."""
    choose_library.cache_clear()
    yield
    choose_library.cache_clear()


def picture(width: int, height: int, mode: str, seed: int) -> Image.Image:
    """Noise, or extremes alone, where what lies between the two passes is clipped most."""
    random = np.random.default_rng(seed)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    values = random.integers(0, 256, shape) if seed % 2 else 255 * random.integers(0, 2, shape)
    return Image.fromarray(values.astype(np.uint8))


def by_pillow(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    resample: Image.Resampling,
) -> np.ndarray:
    """Rows first, then columns, whatever Pillow's version would do first."""
    left, top, right, bottom = box
    narrow = image.resize((size[1], image.height), resample, (left, 0, right, image.height))
    return to_planes(narrow.resize(size[::-1], resample, (0, top, size[1], bottom)))


SIDES = st.integers(1, 90)
SHARES = st.tuples(st.floats(0, 0.45), st.floats(0.55, 1)) | st.just((0.0, 1.0))


@settings(max_examples=400)
@given(
    name=st.sampled_from(LIBRARIES),
    source=st.tuples(SIDES, SIDES),
    size=st.tuples(SIDES, SIDES),
    mode=st.sampled_from(["L", "RGB"]),
    resample=st.sampled_from(FILTERS),
    across=SHARES,
    down=SHARES,
    seed=st.integers(0, 9),
)
def test_every_part_equals_that_of_pillow(name, source, size, mode, resample, across, down, seed):
    library = load(name)
    if library is None:
        return
    image = picture(source[0], source[1], mode, seed)
    box = (
        across[0] * source[0],
        down[0] * source[1],
        across[1] * source[0],
        down[1] * source[1],
    )
    planes = call(library, image, size, box, resample)
    assert planes is not None
    np.testing.assert_array_equal(planes, by_pillow(image, size, box, resample))


@pytest.mark.parametrize("side", [15, 16, 17, 224, 225])
@pytest.mark.parametrize("source", [(500, 375), (2, 1000), (1, 1), (1600, 1200)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_usual_sizes_equal_those_of_pillow(library, side, source, mode):
    image = picture(source[0], source[1], mode, seed=1)
    box = (0.0, 0.0, *image.size)
    planes = call(library, image, (side, side), box, Image.Resampling.BICUBIC)
    assert planes is not None
    expected = by_pillow(image, (side, side), box, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(planes, expected)


@settings(max_examples=200)
@given(
    source=st.tuples(SIDES, SIDES),
    size=st.tuples(SIDES, SIDES),
    channels=st.sampled_from([1, 3]),
    interpolation=st.sampled_from(
        ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"],
    ),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 1.0, 1.1]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)
def test_a_transform_gives_the_same_pixels_without_the_library(
    source, size, channels, interpolation, crop_pct, crop_mode
):
    transform = ImageTransform((channels, *size), interpolation, crop_pct, crop_mode, (9, 99, 199))
    image = picture(source[0], source[1], "L" if channels == 1 else "RGB", seed=1)
    pixels = resize_and_crop(image, transform)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "choose_library", lambda: None)
        expected = resize_and_crop(image, transform)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.flags.c_contiguous
    assert expected.flags.c_contiguous


def test_pillow_takes_single_pixels(library):
    image = picture(40, 30, "RGB", seed=1)
    assert call(library, image, (8, 8), (0, 0, 40, 30), Image.Resampling.NEAREST) is None


def test_pillow_resizes_an_image_in_several_pieces(library):
    image = Image.new("RGB", (2500, 2000), (10, 200, 30))
    with pytest.raises(ValueError, match=r"contiguous|array"):
        image.__arrow_c_array__()
    assert call(library, image, (8, 8), (0, 0, 2500, 2000), Image.Resampling.BICUBIC) is None
    pixels = resize_and_crop(image, TRANSFORM)
    assert (pixels == np.array([10, 200, 30], np.uint8)[:, None, None]).all()


def test_an_image_is_not_held_after_it_is_resized(library):
    def resize() -> None:
        image = Image.new("RGB", (500, 400))
        assert call(library, image, (8, 8), (0, 0, 500, 400), Image.Resampling.BICUBIC) is not None

    resize()
    before = megabytes("VmRSS")
    for _ in range(250):  # of 0.8 MB each
        resize()
    assert megabytes("VmRSS") - before < 50


@pytest.mark.usefixtures("chosen_anew")
def test_the_environment_switches_the_library_off(monkeypatch):
    monkeypatch.setenv("TOME_CPU_ISA", "none")
    assert choose_library() is None


@pytest.mark.usefixtures("chosen_anew")
def test_the_log_says_once_that_the_library_is_missing(monkeypatch, caplog):
    monkeypatch.setattr(resampling, "load", lambda name: None)
    monkeypatch.delenv("TOME_CPU_ISA", raising=False)
    image = picture(40, 30, "RGB", seed=1)
    with caplog.at_level(logging.WARNING):
        assert resize_and_crop(image, TRANSFORM).shape == TRANSFORM.size
        resize_and_crop(image, TRANSFORM)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("the compiled resampling is missing")


@pytest.mark.usefixtures("chosen_anew")
def test_a_library_that_differs_from_pillow_is_not_used(monkeypatch, caplog):
    def wrong(library, image, size, box, resample):
        return np.zeros((len(image.getbands()), *size), np.uint8)

    monkeypatch.setattr(resampling, "load", lambda name: ctypes.CDLL(None))
    monkeypatch.setattr(resampling, "call", wrong)
    monkeypatch.delenv("TOME_CPU_ISA", raising=False)
    with caplog.at_level(logging.WARNING):
        assert choose_library() is None
    assert "differs from this Pillow" in caplog.text


def test_a_file_that_is_no_library_is_not_used(monkeypatch, tmp_path, caplog):
    (tmp_path / "_broken.so").write_bytes(b"nothing")
    monkeypatch.setattr(resampling, "__file__", str(tmp_path / "resampling.py"))
    with caplog.at_level(logging.WARNING):
        assert load("_broken") is None
    assert "cannot be loaded" in caplog.text
    assert load("_absent") is None
