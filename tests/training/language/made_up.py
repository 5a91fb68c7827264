"""Clips of made-up speech: tones whose pitch tells the language."""

from __future__ import annotations

import numpy as np

from training.language.clips import RATE, Clip, encode


def clip(label: int, seconds: float, source: str = "", prompt: str = "hello") -> Clip:
    """A hum with overtones, trembling, with noise; by default of one speaker for each language."""
    count = round(seconds * RATE)
    rng = np.random.default_rng(label + count)
    times = np.arange(count) / RATE
    pitch = 120 + 60 * label
    tones = [np.sin(2 * np.pi * pitch * k * times) / k for k in (1, 2, 3, 5)]
    samples = 0.2 * sum(tones) * (1 + np.sin(2 * np.pi * 4 * times))
    samples = samples + 0.01 * rng.standard_normal(count)
    return Clip(encode(samples.astype(np.float32)), label, source or f"speaker-{label}", prompt)
