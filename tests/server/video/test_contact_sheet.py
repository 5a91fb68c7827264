"""The contact sheet of a clip: frames in order, and one colour for what merged across time."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.imaging.visualization import draw_regions, outline_colours
from server.media.transforms import VideoTransform
from server.video.contact_sheet import draw_clip

GAP = 4
Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]


def transform_of(steps: int, tubelet: int, height: int, width: int) -> VideoTransform:
    return VideoTransform(steps * tubelet, tubelet, height, width, resize=min(height, width))


def clip_of(transform: VideoTransform, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, transform.size, np.uint8)


def cut(sheet: Pixels, steps: int) -> list[Pixels]:
    """Return the frames of a contact sheet, in order of time; the rest has to be black."""
    columns = min(4, steps)
    rows = -(-steps // columns)
    height = (sheet.shape[0] + GAP) // rows - GAP
    width = (sheet.shape[1] + GAP) // columns - GAP
    rest = sheet.copy()
    frames = []
    for row, column in itertools.islice(itertools.product(range(rows), range(columns)), steps):
        top, left = row * (height + GAP), column * (width + GAP)
        window = slice(top, top + height), slice(left, left + width)
        frames.append(sheet[window])
        rest[window] = 0
    assert not rest.any()
    return frames


def frame_drawn_slowly(numbers: Numbers, colours: Pixels, cell: tuple[int, int]) -> Pixels:
    """One frame: outlined is what has another region, or the outside, within a line's width."""
    line = max(1, min(cell) // 16)
    own = numbers.repeat(cell[0], 0).repeat(cell[1], 1)
    around = np.pad(own, line, constant_values=-1)
    is_inside = np.ones(own.shape, bool)
    for down, right in itertools.product((0, line, 2 * line), repeat=2):
        is_inside &= around[down:, right:][: own.shape[0], : own.shape[1]] == own
    return np.where(is_inside[..., None], colours[own], outline_colours(len(colours))[own])


@st.composite
def cases(
    sample: st.DrawFn,
) -> tuple[Pixels, Numbers, int, tuple[int, int], VideoTransform]:
    steps, tubelet = sample(st.integers(1, 9)), sample(st.integers(1, 3))
    rows, columns = sample(st.integers(1, 3)), sample(st.integers(1, 3))
    patch = sample(st.sampled_from([4, 8, 16]))
    prefix = sample(st.integers(0, 1))
    transform = dataclasses.replace(
        transform_of(steps, tubelet, rows * patch, columns * patch),
        channels=sample(st.sampled_from([1, 3])),
    )
    seed = sample(st.integers(0, 2**32))
    tubelets = steps * rows * columns
    left = sample(st.integers(1, tubelets))
    merged = np.random.default_rng(seed).integers(prefix, prefix + left, tubelets)
    source = np.concatenate([np.arange(prefix), merged])
    return clip_of(transform, seed), source, prefix, (steps * rows, columns), transform


@settings(max_examples=20)
@given(cases())
def test_each_frame_has_the_mean_colours_of_the_whole_clip(case: tuple) -> None:
    pixels, source, prefix, grid, transform = case
    steps = transform.frames // transform.tubelet
    shape = (steps, grid[0] // steps, grid[1])
    patch = transform.width // grid[1]
    numbers = np.unique(source[prefix:], return_inverse=True)[1].reshape(shape)
    of_pixels = numbers.repeat(transform.tubelet, 0).repeat(patch, 1).repeat(patch, 2)
    by_pixel = pixels.reshape(transform.channels, -1)
    means = [by_pixel[:, of_pixels.ravel() == n].mean(axis=1) for n in range(numbers.max() + 1)]
    colours = np.broadcast_to(np.rint(means).astype(np.uint8), (len(means), 3))
    frames = cut(np.asarray(draw_clip(*case)), steps)
    cell = frames[0].shape[0] // shape[1], frames[0].shape[1] // shape[2]
    for frame, own in zip(frames, numbers, strict=True):
        np.testing.assert_array_equal(frame, frame_drawn_slowly(own, colours, cell))


@pytest.mark.parametrize(
    ("steps", "size", "grid", "picture"),
    [
        (1, (224, 224), (14, 14), (224, 224)),
        (2, (224, 224), (14, 14), (224, 452)),
        (4, (224, 224), (14, 14), (224, 908)),
        (5, (224, 224), (14, 14), (452, 908)),
        (8, (32, 32), (2, 2), (2 * 128 + 4, 4 * 128 + 12)),
        (8, (64, 64), (8, 8), (2 * 128 + 4, 4 * 128 + 12)),
        (16, (56, 112), (7, 14), (4 * 112 + 12, 4 * 224 + 12)),
    ],
)
def test_the_sheet_has_four_frames_in_a_row_that_can_be_seen(
    steps: int, size: tuple[int, int], grid: tuple[int, int], picture: tuple[int, int]
) -> None:
    transform = transform_of(steps, 2, *size)
    source = np.arange(steps * grid[0] * grid[1])
    sheet = draw_clip(clip_of(transform), source, 0, (steps * grid[0], grid[1]), transform)
    assert (sheet.height, sheet.width) == picture


def test_what_merged_across_time_has_one_colour_and_one_outline() -> None:
    transform = transform_of(2, 2, 32, 32)
    pixels = np.zeros(transform.size, np.uint8)
    pixels[0, 64:] = 200  # the second step is red
    source = np.array([0, 1, 2, 3, 4, 5, 6, 3])  # the last patch merged with that before it
    before, after = cut(np.asarray(draw_clip(pixels, source, 0, (4, 2), transform)), 2)
    half = len(before) // 2
    merged = before[half:, half:]
    np.testing.assert_array_equal(merged, after[half:, half:])
    np.testing.assert_array_equal(merged[half // 2, half // 2], [100, 0, 0])
    np.testing.assert_array_equal(before[half // 2, half // 2], [0, 0, 0])
    np.testing.assert_array_equal(after[half // 2, half // 2], [200, 0, 0])


def test_one_step_is_drawn_as_an_image() -> None:
    transform = transform_of(1, 1, 224, 224)
    pixels = clip_of(transform)
    source = np.random.default_rng(0).integers(0, 50, 197)
    np.testing.assert_array_equal(
        np.asarray(draw_clip(pixels, source, 1, (14, 14), transform)),
        np.asarray(draw_regions(pixels, source, 1, (14, 14))),
    )
