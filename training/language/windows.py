"""Windows of a clip, as the server cuts them: without overlap, the last one aligned to the end."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from training.language.network import FRAMES
from training.language.spectrograms import HOP, WINDOW, log_mel

LENGTH = WINDOW + HOP * (FRAMES - 1)  # samples of a window
STEP = HOP * FRAMES


def starts(length: int) -> list[int]:
    """Return where the windows of ``length`` samples start."""
    if length <= LENGTH:
        return [0]
    count = math.ceil((length - LENGTH) / STEP)
    return [*range(0, count * STEP, STEP), length - LENGTH]


def windows(samples: Tensor) -> list[Tensor]:
    """Return the log-mel spectrograms ``(mel, FRAMES)`` of the windows of ``samples (n,)``.

    Frames that a short clip lacks are 0, as the authors of AST pad.
    """
    if len(samples) < WINDOW:
        samples = F.pad(samples, (0, WINDOW - len(samples)))
    found = []
    for start in starts(len(samples)):
        spectrogram = log_mel(samples[None, start : start + LENGTH])[0]  # (mel, frames)
        missing = FRAMES - spectrogram.shape[1]
        found.append(F.pad(spectrogram, (0, missing)))
    return found
