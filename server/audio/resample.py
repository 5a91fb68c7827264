"""Resample mono sound block by block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import soxr


class Resampler:
    """Collects mono blocks of one sample rate as samples of another, both in Hz.

    The blocks do not show: the result is that of the whole sound at once.
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        self._stream: soxr.ResampleStream | None = None
        if source_rate != target_rate:
            self._stream = soxr.ResampleStream(
                source_rate,
                target_rate,
                num_channels=1,
                dtype="float32",
                quality="HQ",
            )
        self._pieces: list[npt.NDArray[np.float32]] = []

    def add(self, block: npt.NDArray[np.float32]) -> None:
        """Take the next samples ``(n,)``, which the caller must not change afterwards."""
        self._pieces.append(self._stream.resample_chunk(block) if self._stream else block)

    def finish(self) -> npt.NDArray[np.float32]:
        """Return all samples, resampled; to be called once."""
        if self._stream:
            nothing = np.empty(0, np.float32)
            self._pieces.append(self._stream.resample_chunk(nothing, last=True))
        return np.concatenate(self._pieces)
