"""A sound or a clip that every worker decodes before its first task."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from typing import Any

from server.media.decoded import Decoded
from server.media.limits import AudioLimits, VideoLimits
from server.media.modality import Modality
from server.media.transforms import AudioTransform
from server.video import warm_up as clip

# Called with a body, its transform, and its limits. Each decoder knows those of its modality alone.
Decode = Callable[[bytes, Any, Any], Decoded]

_SAMPLE_RATE = 8_000  # so that the sound is resampled
_SOUND = AudioTransform(frames=16, mean=0.0, std=0.5, time_last=True, subtract_mean=True)


def warm_up(decode: Decode, modality: Modality) -> None:
    """Decode half a second of silence or two grey frames, which imports what is imported late.

    Raises:
        Exception: whatever is wrong with the decoder.
    """
    if modality is Modality.VIDEO:
        decode(clip.BODY, clip.TRANSFORM, VideoLimits())
    else:
        decode(_silence(), _SOUND, AudioLimits())


def _silence() -> bytes:
    """Return a WAV file."""
    body = io.BytesIO()
    with wave.open(body, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_SAMPLE_RATE)
        file.writeframes(bytes(_SAMPLE_RATE))
    return body.getvalue()
