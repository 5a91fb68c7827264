"""Check what a video has, and what has been decoded of it, against its limits."""

from __future__ import annotations

from server.errors import TooLarge
from server.media.limits import VideoLimits


def check_size(width: int, height: int, limits: VideoLimits) -> None:
    """Refuse a video by the size of its frames in pixels. Raises `TooLarge`."""
    dimensions = f"the video is {width} x {height}"
    if max(width, height) > limits.max_side:
        raise TooLarge(
            f"{dimensions}; a side may have {limits.max_side} pixels",
            limit=limits.max_side,
        )
    if width * height > limits.max_pixels:
        raise TooLarge(
            f"{dimensions}, {width * height} pixels; allowed are {limits.max_pixels} a frame",
            limit=limits.max_pixels,
        )


def check_duration(frames: int, seconds: float, limits: VideoLimits) -> None:
    """Refuse a video by its duration, and by its mean frames a second. Raises `TooLarge`."""
    if seconds > limits.max_seconds:
        raise TooLarge(
            f"the video is longer than {limits.max_seconds:g} s, the longest allowed",
            limit=limits.max_seconds,
        )
    # One frame more: the times of a short video are rounded, by Matroska to milliseconds.
    if frames > limits.max_frame_rate * seconds + 1:
        raise TooLarge(
            f"the video has more than {limits.max_frame_rate:g} frames a second, the most allowed",
            limit=limits.max_frame_rate,
        )


def check_packets(packets: int, limits: VideoLimits) -> None:
    """Refuse a file of which ``packets`` frames have been read so far. Raises `TooLarge`."""
    allowed = int(limits.max_seconds * limits.max_frame_rate)
    if packets > allowed:
        raise TooLarge(f"the video has more than {allowed} frames, the most allowed", limit=allowed)


def check_decoded(frames: int, limits: VideoLimits) -> None:
    """Refuse a video of which ``frames`` frames are or have to be decoded. Raises `TooLarge`."""
    if frames > limits.max_frames:
        raise TooLarge(
            f"more than {limits.max_frames} frames of the video would have to be decoded, the most"
            " allowed; send a shorter video, one of fewer frames a second, or one with more"
            " keyframes",
            limit=limits.max_frames,
        )


def check_windows(windows: int, limits: VideoLimits) -> None:
    """Refuse more clips times crops than are allowed. Raises `TooLarge`."""
    if windows > limits.max_windows:
        raise TooLarge(
            f"clips times crops are {windows}; allowed are {limits.max_windows}",
            limit=limits.max_windows,
        )
