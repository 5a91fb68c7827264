"""Generated sounds, for a load without files: tones and bursts of noise, as WAV files."""

from __future__ import annotations

import array
import io
import math
import sys
import wave
from collections.abc import Iterator
from random import Random

SAMPLE_RATE = 16_000
# Shorter than a window of most models, about as long, and longer.
SECONDS = (1.0, 3.0, 10.0)

_EVENT_SECONDS = (0.05, 0.4)
_TONE_HERTZ = (100.0, 4_000.0)
_LARGEST = 32_767  # of 16-bit samples


def generate_wavs() -> dict[str, bytes]:
    """Generate WAV files, 16 kHz, mono, 16-bit, always the same, by name."""
    return {
        f"generated-{seconds:g}s.wav": generate_wav(seconds, Random(seconds)) for seconds in SECONDS
    }


def generate_wav(seconds: float, random: Random) -> bytes:
    """Generate a WAV file in which tones and bursts of noise of random loudness take turns."""
    samples = array.array("h")
    wanted = round(seconds * SAMPLE_RATE)
    while len(samples) < wanted:
        loudness = random.uniform(0.05, 0.8)
        duration = random.uniform(*_EVENT_SECONDS)
        event = random.choice((_tone, _noise))
        count = min(round(duration * SAMPLE_RATE), wanted - len(samples))
        samples.extend(round(_LARGEST * loudness * value) for value in event(count, random))
    if sys.byteorder == "big":
        samples.byteswap()
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def _tone(count: int, random: Random) -> Iterator[float]:
    step = 2 * math.pi * random.uniform(*_TONE_HERTZ) / SAMPLE_RATE
    for index in range(count):
        yield math.sin(step * index)


def _noise(count: int, random: Random) -> Iterator[float]:
    for _ in range(count):
        yield random.uniform(-1, 1)
