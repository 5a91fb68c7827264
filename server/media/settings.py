"""The settings of the server about sound and video: their limits, and what decodes them."""

from __future__ import annotations

from pydantic import BaseModel, Field

from server.media.limits import AudioLimits, MediaLimits, VideoLimits
from server.media.modality import Modality


class MediaSettings(BaseModel):
    """A part of `server.settings.Settings`."""

    max_audio_bytes: int = Field(
        32_000_000,
        ge=1,
        description="Largest request body for a model of sound, in bytes.",
    )
    max_audio_seconds: float = Field(120.0, gt=0, description="Longest sound, in seconds.")
    max_audio_channels: int = Field(8, ge=1, description="Most channels of a sound.")
    max_windows: int = Field(
        12,
        ge=1,
        le=1000,
        description="Most windows of the model's length in a sound; each is one image of a batch.",
    )
    audio_body_timeout: float = Field(
        30.0,
        gt=0,
        description="Seconds within which the body of a request must arrive for a model of sound.",
    )
    max_video_bytes: int = Field(
        64_000_000,
        ge=1,
        description="Largest request body for a model of video, in bytes.",
    )
    max_video_seconds: float = Field(
        VideoLimits.max_seconds, gt=0, le=86_400, description="Longest video, in seconds."
    )
    max_video_frames: int = Field(
        VideoLimits.max_frames,
        ge=1,
        description="Most frames of a video that are decoded, whatever the file has.",
    )
    max_video_pixels: int = Field(
        VideoLimits.max_pixels,
        ge=1,
        description="Most pixels of a frame of a video, width times height.",
    )
    max_video_windows: int = Field(
        VideoLimits.max_windows,
        ge=1,
        le=48,
        description="Most clips times crops of a video; each is one image of a batch.",
    )
    video_body_timeout: float = Field(
        60.0,
        gt=0,
        description="Seconds within which the body of a request must arrive for a model of video.",
    )
    decode_workers: int = Field(
        2,
        ge=1,
        le=64,
        description="Processes that decode sounds and videos, where models take these; default: 2,"
        " or one for each API process.",
    )
    media_decode_timeout: float = Field(
        10.0,
        gt=0,
        le=600,
        description="Seconds within which a sound or a video must be decoded.",
    )

    @property
    def media_limits(self) -> dict[Modality, MediaLimits]:
        """The limits on one sound and on one video."""
        return {Modality.AUDIO: self.audio_limits, Modality.VIDEO: self.video_limits}

    @property
    def audio_limits(self) -> AudioLimits:
        """The limits on one sound."""
        return AudioLimits(
            max_seconds=self.max_audio_seconds,
            max_channels=self.max_audio_channels,
            max_windows=self.max_windows,
        )

    @property
    def video_limits(self) -> VideoLimits:
        """The limits on one video."""
        return VideoLimits(
            max_seconds=self.max_video_seconds,
            max_frames=self.max_video_frames,
            max_pixels=self.max_video_pixels,
            max_windows=self.max_video_windows,
        )
