"""Check what a sound has, and what has been decoded of it, against its limits."""

from __future__ import annotations

from server.errors import BadMedia, TooLarge
from server.media.limits import AudioLimits

_SAMPLE_BYTES = 4
_MEGABYTE = 1_000_000


def check_header(sample_rate: int, channels: int, limits: AudioLimits) -> None:
    """Refuse a sound by the sample rate (Hz) and the channels that its header says.

    Raises:
        TooLarge: one of them is too large.
        BadMedia: the sample rate is too low.
    """
    if channels > limits.max_channels:
        raise TooLarge(
            f"the sound has {channels} channels; allowed are {limits.max_channels}",
            limit=limits.max_channels,
        )
    allowed = f"allowed are {limits.min_rate} to {limits.max_rate} Hz"
    if sample_rate > limits.max_rate:
        raise TooLarge(
            f"the sound has a sample rate of {sample_rate} Hz; {allowed}",
            limit=limits.max_rate,
        )
    if sample_rate < limits.min_rate:
        raise BadMedia(f"the sound has a sample rate of {sample_rate} Hz; {allowed}")


def check_decoded(frames: int, sample_rate: int, channels: int, limits: AudioLimits) -> None:
    """Refuse a sound of which ``frames`` frames have been decoded so far. Raises `TooLarge`."""
    if frames > limits.max_seconds * sample_rate:
        raise TooLarge(
            f"the sound is longer than {limits.max_seconds:g} s, the longest allowed",
            limit=limits.max_seconds,
        )
    if frames * channels * _SAMPLE_BYTES > limits.max_pcm_bytes:
        megabytes = limits.max_pcm_bytes / _MEGABYTE
        raise TooLarge(
            f"the sound takes more than {megabytes:g} MB when decoded, the most allowed; send"
            " fewer channels, a lower sample rate, or a shorter sound",
            limit=limits.max_pcm_bytes,
        )
