"""Decoded media: the inputs of a model, and where each lies in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class MediaInfo:
    """What a sound is: its duration, and the sample rate (Hz) and channels of its file."""

    seconds: float
    sample_rate: int
    channels: int


@dataclass(frozen=True)
class Window:
    """Where one window lies in the sound, in seconds; ``end`` is that of the sound at most."""

    start: float
    end: float


@dataclass(frozen=True)
class Decoded:
    """The windows of one sound.

    Attributes:
        inputs: one for each window, float32 ``(n, C, H, W)``, normalised.
        windows: in order of time, one for each input.
        media: of the whole sound.
    """

    inputs: npt.NDArray[np.float32]
    windows: tuple[Window, ...]
    media: MediaInfo
