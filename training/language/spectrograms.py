"""Log-mel spectrograms of batches in torch: the values of Kaldi's, as `server.audio` has them.

The server's own front end is NumPy, one sound at a time. Training needs thousands a second.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

RATE = 16_000  # Hz
MEL_BINS = 128
LOWEST = 20.0  # Hz, where the first mel filter begins
WINDOW = 400  # samples of a frame
HOP = 160  # samples from one frame to the next
FFT = 512
PRE_EMPHASIS = 0.97
FLOOR = 1.1920929e-07  # of the energy of a filter


def mel(frequency: float) -> float:
    """Return ``frequency``, in Hz, in mel."""
    return 1127.0 * math.log1p(frequency / 700.0)


@cache
def mel_filters(device: torch.device) -> Tensor:
    """Return the filters ``(FFT // 2 + 1, MEL_BINS)``: triangles in mel."""
    low = mel(LOWEST)
    step = (mel(RATE / 2) - low) / (MEL_BINS + 1)
    frequencies = torch.arange(FFT // 2 + 1, dtype=torch.float64) * RATE / FFT
    mels = 1127.0 * torch.log1p(frequencies / 700.0)
    position = (mels[:, None] - low) / step  # (FFT // 2 + 1, 1), in filters
    centres = torch.arange(1, MEL_BINS + 1)
    filters = (1 - (position - centres).abs()).clamp(min=0)
    filters[-1] = 0  # Kaldi leaves out the Nyquist frequency.
    return filters.to(device, torch.float32)


@cache
def frame_window(device: torch.device) -> Tensor:
    """Return the Hann window ``(WINDOW,)``."""
    window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64)
    return window.to(device, torch.float32)


def log_mel(samples: Tensor) -> Tensor:
    """Return the spectrograms ``(B, MEL_BINS, frames)`` of ``samples (B, n)`` at `RATE`."""
    frames = samples.unfold(-1, WINDOW, HOP)  # (B, frames, WINDOW)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    frames = (frames - PRE_EMPHASIS * previous) * frame_window(samples.device)
    power = torch.fft.rfft(frames, n=FFT).abs().square()  # (B, frames, FFT // 2 + 1)
    energies = power @ mel_filters(samples.device)  # (B, frames, MEL_BINS)
    return energies.clamp(min=FLOOR).log().transpose(1, 2)
