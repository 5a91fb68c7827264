"""Synthetic pictures with a photograph's spectrum, where a real one would have to be shipped."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random, with amplitudes of 1 / frequency ** 1.2 and channels that mostly agree."""
    draw = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf

    def plane() -> np.ndarray:
        spectrum = draw.normal(size=(2, *frequency.shape)) / frequency**1.2
        values = np.fft.irfft2(spectrum[0] + 1j * spectrum[1], s=(height, width))
        return values / values.std()

    grey = plane()
    pixels = np.stack([128 + 40 * grey + 20 * plane() for _ in range(3)], axis=-1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Random bytes, of which a file is large for its size."""
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def encode(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    """``image`` as the bytes of a file; a JPEG of quality 90 unless ``options`` say otherwise."""
    file = io.BytesIO()
    image.save(file, form, **({"quality": 90} if form == "JPEG" else {}) | options)
    return file.getvalue()
