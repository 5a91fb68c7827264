"""The picture of merging, against one drawn pixel by pixel."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.imaging.visualization import draw_regions, encode_png, outline_colours


def drawn_pixel_by_pixel(
    pixels: npt.NDArray[np.uint8],
    source: npt.NDArray[np.int64],
    prefix: int,
    grid: tuple[int, int],
    scale: int,
) -> npt.NDArray[np.uint8]:
    """Every pixel of the picture by itself: outlined if one around it is of another region, or
    outside.
    """
    _, height, width = pixels.shape
    rows, columns = grid
    numbers = sorted(set(source[prefix:].tolist()))

    def region(y: int, x: int) -> int:
        if not (0 <= y < height * scale and 0 <= x < width * scale):
            return -1
        row = y // scale * rows // height
        column = x // scale * columns // width
        return numbers.index(int(source[prefix + row * columns + column]))

    members: dict[int, list[npt.NDArray[np.uint8]]] = {}
    for y in range(height):
        for x in range(width):
            members.setdefault(region(y * scale, x * scale), []).append(pixels[:, y, x])
    means = {number: np.rint(np.mean(colours, axis=0)) for number, colours in members.items()}
    line = max(1, min(height // rows, width // columns) * scale // 16)
    picture = np.zeros((height * scale, width * scale, 3), np.uint8)
    for y, x in np.ndindex(picture.shape[:2]):
        own = region(y, x)
        near = {region(y + dy, x + dx) for dy in (-line, 0, line) for dx in (-line, 0, line)}
        picture[y, x] = means[own] if near == {own} else outline_colours(len(numbers))[own]
    return picture


@st.composite
def cases(
    sample: st.DrawFn,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], int, tuple[int, int], int]:
    rows = sample(st.integers(1, 3))
    columns = sample(st.integers(1, 4))
    prefix = sample(st.integers(0, 2))
    patch, scale = sample(
        st.sampled_from([((16, 16), 1), ((8, 10), 2), ((20, 16), 1), ((4, 4), 4)])
    )
    random = np.random.default_rng(sample(st.integers(0, 2**32)))
    pixels = random.integers(
        0, 256, (sample(st.sampled_from([1, 3])), rows * patch[0], columns * patch[1]), np.uint8
    )
    tokens = prefix + sample(st.integers(1, rows * columns))
    source = np.concatenate([np.arange(prefix), random.integers(prefix, tokens, rows * columns)])
    return pixels, source, prefix, (rows, columns), scale


@settings(max_examples=20)
@given(cases())
def test_the_picture_equals_one_drawn_pixel_by_pixel(case: tuple) -> None:
    np.testing.assert_array_equal(np.asarray(draw_regions(*case[:4])), drawn_pixel_by_pixel(*case))


@pytest.mark.parametrize(
    ("size", "grid", "picture"),
    [
        ((1, 28, 28), (14, 14), (224, 224)),
        ((3, 224, 224), (14, 14), (224, 224)),
        ((3, 384, 128), (24, 8), (384, 128)),
        ((3, 56, 56), (4, 4), (112, 112)),
        ((3, 56, 28), (4, 2), (112, 56)),
        ((3, 230, 225), (14, 14), (224, 224)),  # a few pixels more than whole patches
    ],
)
def test_every_patch_can_be_seen(
    size: tuple[int, int, int], grid: tuple[int, int], picture: tuple[int, int]
) -> None:
    drawn = draw_regions(np.full(size, 9, np.uint8), np.arange(1 + grid[0] * grid[1]), 1, grid)
    assert (drawn.height, drawn.width) == picture
    assert min(drawn.height // grid[0], drawn.width // grid[1]) >= 16
    # one outline each, and the one colour that all have inside
    assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) == grid[0] * grid[1] + 1


def test_outlines_differ_and_stay_the_same() -> None:
    colours = outline_colours(600)
    assert len(np.unique(colours, axis=0)) == 600
    np.testing.assert_array_equal(outline_colours(10), colours[:10])
    assert colours.max(axis=1).min() > 100


def test_the_file_holds_the_picture() -> None:
    drawn = draw_regions(np.zeros((3, 32, 32), np.uint8), np.arange(5), 1, (2, 2))
    with Image.open(io.BytesIO(encode_png(drawn))) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(drawn))
