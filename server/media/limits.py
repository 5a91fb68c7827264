"""The limits on what is decoded, by modality."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AudioLimits:
    """Limits on one sound, counted while it is decoded: its header may lie.

    Attributes:
        max_seconds: its duration.
        max_channels: most channels.
        min_rate, max_rate: sample rate in Hz.
        max_pcm_bytes: of all decoded samples, 4 bytes each.
        max_windows: most windows of the model's length.
    """

    max_seconds: float = 120.0
    max_channels: int = 8
    min_rate: int = 4_000
    max_rate: int = 192_000
    max_pcm_bytes: int = 64_000_000
    max_windows: int = 12


@dataclass(frozen=True)
class VideoLimits:
    """Limits on one video, counted while it is decoded: its header may lie.

    Attributes:
        max_seconds: its duration.
        max_frames: most frames that are decoded, whatever the file has.
        max_pixels: of one frame, width times height.
        max_side: width and height.
        max_frame_rate: mean frames a second.
        max_windows: most clips times crops.
    """

    max_seconds: float = 300.0
    max_frames: int = 3_600
    max_pixels: int = 1920 * 1088
    max_side: int = 4_096
    max_frame_rate: float = 120.0
    max_windows: int = 16


MediaLimits = AudioLimits | VideoLimits
