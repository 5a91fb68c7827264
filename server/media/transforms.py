"""The transforms from an encoded body to a model's input, one type for each modality."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from server.media.modality import Modality


@dataclass(frozen=True)
class ImageTransform:
    """The transform from an encoded image to a model's input, as in timm's ``resolve_data_config``.

    Attributes:
        size: ``(C, H, W)`` of the input.
        interpolation: Pillow's name of the filter in lower case, such as ``bicubic``.
        crop_pct: share of the resized image that the crop keeps.
        crop_mode: ``center``, ``squash`` or ``border``.
        fill: colour of the border that ``border`` adds, the rounded mean: one number from 0 to 255
            per channel.
        dtype: of the pixels; the engine normalises them.
    """

    modality: ClassVar = Modality.IMAGE
    dtype: ClassVar[Literal["uint8"]] = "uint8"

    size: tuple[int, int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    fill: tuple[int, ...] = (0, 0, 0)


@dataclass(frozen=True)
class AudioTransform:
    """The transform from sound to the log-mel spectrogram of one window, a model's input.

    Attributes:
        frames: of one window, one every 10 ms.
        mean, std: of log-mel values in the training data; the input is ``(x - mean) / (2 * std)``.
        time_last: whether the input is ``(1, mel, frames)``, as AST takes it, and not
            ``(1, frames, mel)``, as AudioMAE does.
        subtract_mean: whether the mean of a window's waveform is subtracted first.
        mel_bins: from 20 to 8,000 Hz.
        sample_rate: in Hz, to which the sound is resampled.
        dtype: of the input, which is normalised when it is decoded.
    """

    modality: ClassVar = Modality.AUDIO
    dtype: ClassVar[Literal["float32"]] = "float32"

    frames: int
    mean: float
    std: float
    time_last: bool
    subtract_mean: bool
    mel_bins: int = 128
    sample_rate: int = 16_000

    @property
    def size(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of the input."""
        if self.time_last:
            return (1, self.mel_bins, self.frames)
        return (1, self.frames, self.mel_bins)


@dataclass(frozen=True)
class VideoTransform:
    """The transform from an encoded video to clips, each of which is one input of a model.

    A clip of ``stride`` sampling takes every ``stride``-th frame; its clips are spread evenly over
    the video, one clip lies in its middle. One of ``uniform`` sampling takes one frame of each of
    ``frames`` equal segments of the whole video.

    Attributes:
        frames: T of a clip.
        tubelet: frames that one token stands for.
        height, width: of a frame in the input.
        resize: pixels of the shorter side before the crop.
        interpolation: Pillow's name of the filter in lower case.
        sampling: see above.
        stride: frames from one frame of a clip to the next, where sampling is ``stride``.
        clips: number of clips.
        crops: of each clip: 1 in the middle, or 3 along the longer side.
        channels: 3, or 1 for grey.
        dtype: of the pixels; the engine normalises them.
    """

    modality: ClassVar = Modality.VIDEO
    dtype: ClassVar[Literal["uint8"]] = "uint8"

    frames: int
    tubelet: int
    height: int
    width: int
    resize: int
    interpolation: str = "bilinear"
    sampling: Literal["stride", "uniform"] = "stride"
    stride: int = 4
    clips: int = 1
    crops: Literal[1, 3] = 1
    channels: int = 3

    @property
    def size(self) -> tuple[int, int, int]:
        """``(C, T*H, W)`` of the input: the frames of a clip below each other."""
        return (self.channels, self.frames * self.height, self.width)


Transform = ImageTransform | AudioTransform | VideoTransform
MediaTransform = AudioTransform | VideoTransform


def input_shape(transform: Transform) -> tuple[int, ...]:
    """Return ``(C, H, W)`` of an input; of a clip ``(T, C, H, W)``, as in transformers."""
    if isinstance(transform, VideoTransform):
        return (transform.frames, transform.channels, transform.height, transform.width)
    return transform.size
