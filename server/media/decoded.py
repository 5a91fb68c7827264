"""Decoded media: the inputs of a model, and where each lies in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SoundInfo:
    """What a sound is: its duration, and the sample rate (Hz) and channels of its file."""

    seconds: float
    sample_rate: int
    channels: int


@dataclass(frozen=True)
class VideoInfo:
    """What a video is.

    Attributes:
        seconds: its duration.
        frames: of the whole file, whether they were decoded or not.
        frame_rate: mean frames a second.
        width, height: of the picture as it is shown, in pixels: rotated as the file says.
        codec: such as ``h264``.
    """

    seconds: float
    frames: int
    frame_rate: float
    width: int
    height: int
    codec: str


MediaInfo = SoundInfo | VideoInfo


@dataclass(frozen=True)
class Window:
    """Where one window lies in a sound or a video.

    Attributes:
        start, end: in seconds; ``end`` is that of the media at most.
        crop: of a video, which part of its frames: 0 is the left or the upper one.
    """

    start: float
    end: float
    crop: int = 0


@dataclass(frozen=True)
class Decoded:
    """The windows of one sound or video.

    Attributes:
        inputs: one for each window, ``(n, C, H, W)``, of the transform's dtype: normalised float32
            of a sound, uint8 pixels of a video.
        windows: in order of time, then of crops, one for each input.
        media: the whole sound or video.
    """

    inputs: npt.NDArray[np.float32] | npt.NDArray[np.uint8]
    windows: tuple[Window, ...]
    media: MediaInfo
