"""A sound that every worker decodes before its first task."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable

from server.media.decoded import Decoded
from server.media.limits import AudioLimits
from server.media.transforms import AudioTransform

Decode = Callable[[bytes, AudioTransform, AudioLimits], Decoded]

_SAMPLE_RATE = 8_000  # so that the sound is resampled
_TRANSFORM = AudioTransform(frames=16, mean=0.0, std=0.5, time_last=True, subtract_mean=True)


def warm_up(decode: Decode) -> None:
    """Decode half a second of silence, which imports what is imported late.

    Raises:
        Exception: whatever is wrong with the decoder.
    """
    decode(_silence(), _TRANSFORM, AudioLimits())


def _silence() -> bytes:
    """Return a WAV file."""
    body = io.BytesIO()
    with wave.open(body, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_SAMPLE_RATE)
        file.writeframes(bytes(_SAMPLE_RATE))
    return body.getvalue()
