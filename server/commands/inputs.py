"""From an encoded file to the inputs of a model: an image, or the windows of sound and video."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt

from server.api.pipeline.modalities import name_modality
from server.errors import UnsupportedFormat
from server.imaging.decode import decode
from server.media.decoded import Decoded, MediaInfo, Window
from server.media.limits import AudioLimits, VideoLimits
from server.media.transforms import AudioTransform, ImageTransform, MediaTransform, Transform
from server.settings import Settings

Row: TypeAlias = npt.NDArray[Any]  # uint8 pixels, or float32 log-mel


@dataclass(frozen=True)
class InputLimits:
    """The limits on one file, by modality."""

    max_pixels: int
    max_side: int
    audio: AudioLimits
    video: VideoLimits


SERVER_LIMITS = InputLimits(
    max_pixels=Settings.model_fields["max_pixels"].default,
    max_side=Settings.model_fields["max_side"].default,
    audio=AudioLimits(),
    video=VideoLimits(),
)
# Files that were chosen to be measured on may have any size.
UNLIMITED = InputLimits(
    max_pixels=sys.maxsize,
    max_side=sys.maxsize,
    audio=AudioLimits(
        max_seconds=sys.maxsize,
        max_pcm_bytes=sys.maxsize,
        max_windows=sys.maxsize,
    ),
    video=VideoLimits(
        max_seconds=sys.maxsize,
        max_frames=sys.maxsize,
        max_pixels=1 << 30,  # more than the codecs allow, and less than FFmpeg's largest integer
        max_side=1 << 15,
        max_frame_rate=sys.maxsize,
        max_windows=sys.maxsize,
    ),
)


@dataclass(frozen=True)
class FileInputs:
    """One file, decoded.

    Attributes:
        rows: inputs of the model, each ``(C, H, W)``: the uint8 pixels of an image or of each
            window of a video, or the float32 log-mel of each window of a sound.
        windows: where each row lies in the sound or the video; empty for an image.
        media: the sound or the video; None for an image.
    """

    rows: tuple[Row, ...]
    windows: tuple[Window, ...] = ()
    media: MediaInfo | None = None


def read_inputs(
    body: bytes,
    transform: Transform,
    limits: InputLimits = SERVER_LIMITS,
) -> FileInputs:
    """Decode a file as the server does.

    Raises:
        RequestError: it cannot be decoded, exceeds a limit, or is not what the model takes.
    """
    try:
        if isinstance(transform, ImageTransform):
            return _read_image(body, transform, limits)
        decoded = _prepare(body, transform, limits)
        return FileInputs(tuple(decoded.inputs), decoded.windows, decoded.media)
    except UnsupportedFormat as error:
        raise name_modality(error, body, transform.modality, "the model") from error


def _read_image(body: bytes, transform: ImageTransform, limits: InputLimits) -> FileInputs:
    pixels = decode(
        body,
        transform,
        max_pixels=limits.max_pixels,
        max_side=limits.max_side,
    )
    return FileInputs((pixels,))


def _prepare(body: bytes, transform: MediaTransform, limits: InputLimits) -> Decoded:
    # What decodes them is installed where a model that needs it could be loaded.
    if isinstance(transform, AudioTransform):
        from server.audio import front_end as sound

        return sound.prepare(body, transform, limits.audio)
    from server.video import front_end as video

    return video.prepare(body, transform, limits.video)
