"""The picture of a model's input: low frequencies below, time to the right, loud is bright."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from server.audio.fbank import FLOOR
from server.media.transforms import AudioTransform

Grid = tuple[int, int]  # rows, columns

# What is softer than the loudest part by more than this is black: 80 dB, in nepers of power.
_RANGE = 8 * np.log(10)
# All values of a frame that is padded are closer to zero than this. No frame of sound is so flat.
_PADDING = 1e-3
# From the softest to the loudest, in equal steps. Each colour is brighter than the one before.
_COLOURS = np.array(
    [
        (0, 0, 4),
        (42, 11, 84),
        (110, 27, 110),
        (180, 50, 88),
        (233, 98, 42),
        (250, 170, 30),
        (252, 252, 176),
    ]
)


def spectrogram(
    window_input: npt.NDArray[np.float32],
    transform: AudioTransform,
) -> npt.NDArray[np.uint8]:
    """Return the input ``(C, H, W)`` of one window as a picture, ``uint8 (3, H, W)``, upright.

    What is padded is black.
    """
    log_mel = window_input[0] * (2 * transform.std) + transform.mean
    upright = _upright(log_mel, transform)
    # The zeros of padding would be loud.
    is_padded = (np.abs(upright) < _PADDING).all(axis=0)
    loudest = float(upright[:, ~is_padded].max(initial=FLOOR))
    softest = max(loudest - _RANGE, FLOOR)
    # In silence, all is the softest.
    loudness = (upright - softest) / max(loudest - softest, 1)
    return _colour(np.where(is_padded, 0, np.clip(loudness, 0, 1)))


def oriented_grid(grid: Grid, transform: AudioTransform) -> Grid:
    """Return the rows and columns of patches in the picture, where the input has ``grid``."""
    rows, columns = grid
    return grid if transform.time_last else (columns, rows)


def oriented_source(
    source: npt.NDArray[np.integer],
    prefix: int,
    grid: Grid,
    transform: AudioTransform,
) -> npt.NDArray[np.integer]:
    """Return ``source`` in the order of the patches in the picture.

    Args:
        source: ``(N0,)``, for every input token the position of the token it ended in.
        prefix: number of prefix tokens, which stay in front.
        grid: rows and columns of patches in the input.
    """
    patches = source[prefix:].reshape(grid)
    return np.concatenate([source[:prefix], _upright(patches, transform).ravel()])


def _upright(
    plane: npt.NDArray[Any],
    transform: AudioTransform,
) -> npt.NDArray[Any]:
    """Return a plane of the input with low frequencies below and time to the right."""
    by_frequency = plane if transform.time_last else plane.T
    return by_frequency[::-1]


def _colour(loudness: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Return the colours ``uint8 (3, H, W)`` of numbers from 0 to 1."""
    steps = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(loudness, steps, channel) for channel in _COLOURS.T]
    return np.rint(np.stack(channels)).astype(np.uint8)
