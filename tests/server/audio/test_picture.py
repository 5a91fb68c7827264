"""The picture of a sound is upright, and so are the regions on it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from server.audio.fbank import FLOOR, log_mel
from server.audio.front_end import window_input
from server.audio.picture import oriented_grid, oriented_source, spectrogram
from server.imaging.visualization import draw_regions
from server.media.transforms import AudioTransform

TRANSFORMS = [
    AudioTransform(128, -6.8, 5.5, time_last=True, subtract_mean=False),
    AudioTransform(128, -6.8, 5.5, time_last=False, subtract_mean=False),
]


def rising_tone() -> np.ndarray:
    seconds = np.arange(20_720) / 16_000
    return np.sin(2 * np.pi * (100 + 2000 * seconds) * seconds).astype(np.float32)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_rising_tone_rises_to_the_right(transform: AudioTransform) -> None:
    picture = spectrogram(window_input(rising_tone(), transform), transform)
    assert picture.dtype == np.uint8
    assert picture.shape == (3, 128, 128)
    loudest = picture.sum(axis=0, dtype=int).argmax(axis=0)  # rows from the top
    assert loudest[5] > loudest[60] > loudest[120]


def test_both_layouts_have_one_picture() -> None:
    ast, audio_mae = (spectrogram(window_input(rising_tone(), each), each) for each in TRANSFORMS)
    np.testing.assert_array_equal(ast, audio_mae)


def test_louder_is_brighter() -> None:
    (transform, _) = TRANSFORMS
    levels = np.linspace(FLOOR, 1, 128, dtype=np.float32)
    ramp = (np.broadcast_to(levels, (1, 128, 128)) - transform.mean) / (2 * transform.std)
    brightness = spectrogram(ramp.astype(np.float32), transform).sum(axis=0, dtype=int)[0]
    assert (np.diff(brightness) >= 0).all()
    assert brightness[-1] > 600 > 10 > brightness[0]


def test_silence_is_dark() -> None:
    (transform, _) = TRANSFORMS
    silence = window_input(np.zeros(20_720, np.float32), transform)
    assert spectrogram(silence, transform).max() < 10


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_padding_is_black_and_changes_no_colour(transform: AudioTransform) -> None:
    half = rising_tone()[: 63 * 160 + 400] * np.float32(0.001)
    picture = spectrogram(window_input(half, transform), transform)
    assert picture[:, :, 64:].max() < 10
    shorter = dataclasses.replace(transform, frames=64)
    expected = spectrogram(window_input(half, shorter), shorter)
    np.testing.assert_array_equal(picture[:, :, :64], expected)


@pytest.mark.parametrize(
    ("transform", "grid", "upright"),
    [(TRANSFORMS[0], (2, 3), (2, 3)), (TRANSFORMS[1], (3, 2), (2, 3))],
)
def test_patches_follow_the_picture(transform, grid, upright) -> None:
    # Patch (frequency, time) is 10 * frequency + time.
    by_frequency = np.array([[0, 1, 2], [10, 11, 12]])
    patches = by_frequency if transform.time_last else by_frequency.T
    source = np.concatenate([[98, 99], patches.ravel()])
    oriented = oriented_source(source, 2, grid, transform)
    assert oriented_grid(grid, transform) == upright
    assert oriented.tolist() == [98, 99, 10, 11, 12, 0, 1, 2]


def test_regions_are_drawn_on_the_picture() -> None:
    """AST's patches overlap: 12 x 101 of them over 128 x 1024 pixels."""
    transform = AudioTransform(1024, -4.3, 4.6, time_last=True, subtract_mean=False)
    grid = (12, 101)
    source = np.arange(2 + 12 * 101)
    source[2 : 2 + 101] = 2  # the lowest row is one region
    picture = spectrogram(window_input(rising_tone(), transform), transform)
    oriented = oriented_source(source, 2, grid, transform)
    drawn = np.asarray(draw_regions(picture, oriented, 2, oriented_grid(grid, transform)))
    assert drawn.shape == (12 * 22, 101 * 20, 3)
    lowest = drawn[-11]
    assert len(np.unique(lowest[20:-20], axis=0)) == 1


def test_the_bins_of_the_picture_are_those_of_the_spectrogram() -> None:
    (transform, _) = TRANSFORMS
    expected = log_mel(rising_tone(), 128).argmax(axis=1)
    picture = spectrogram(window_input(rising_tone(), transform), transform)
    loudest = 127 - picture.sum(axis=0, dtype=int).argmax(axis=0)
    np.testing.assert_array_equal(loudest, expected)
