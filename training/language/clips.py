"""Clips of speech as arrays: 8-bit codes of the mu-law, as telephones use it (ITU-T G.711)."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

RATE = 8000  # Hz
MU = 255

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Clip:
    """One recording: its codes ``(n,)`` at `RATE`, its class, its source and its prompt."""

    codes: Codes
    label: int
    source: str
    prompt: str


def encode(samples: npt.NDArray[np.float32]) -> Codes:
    """Return the codes of ``samples (n,)`` in -1 to 1."""
    clipped = np.clip(samples, -1, 1)
    compressed = np.sign(clipped) * np.log1p(MU * np.abs(clipped)) / np.log1p(MU)
    return np.round((compressed + 1) * (MU / 2)).astype(np.uint8)


def decode_table() -> npt.NDArray[np.float32]:
    """Return the sample ``(256,)`` of every code."""
    compressed = np.arange(256) * (2 / MU) - 1
    samples = np.sign(compressed) * np.expm1(np.abs(compressed) * np.log1p(MU)) / MU
    return samples.astype(np.float32)


def wav_file(clip: Clip) -> bytes:
    """Return ``clip`` as a WAV file of 16 bits."""
    samples = np.round(decode_table()[clip.codes] * 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(samples.itemsize)
        writer.setframerate(RATE)
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def save(path: Path, clips: Sequence[Clip]) -> None:
    """Write ``clips`` to ``path``."""
    empty = np.zeros(0, np.uint8)
    np.savez_compressed(
        path,
        codes=np.concatenate([empty, *(clip.codes for clip in clips)]),
        lengths=np.array([len(clip.codes) for clip in clips], np.int64),
        labels=np.array([clip.label for clip in clips], np.int64),
        sources=np.array([clip.source for clip in clips], str),
        prompts=np.array([clip.prompt for clip in clips], str),
    )


def load(path: Path) -> list[Clip]:
    """Return what `save` wrote."""
    with np.load(path) as file:
        ends = file["lengths"].cumsum()
        codes = np.split(file["codes"], ends)[:-1]  # what follows the last clip is empty
        rows = zip(codes, file["labels"], file["sources"], file["prompts"], strict=True)
        return [Clip(row, int(label), str(name), str(prompt)) for row, label, name, prompt in rows]
