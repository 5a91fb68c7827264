"""Windows of a clip, as the server cuts them, but on the device of the training."""

from __future__ import annotations

import sys

import torch.nn.functional as F
from torch import Tensor

from server.audio.windows import cut
from training.language.network import FRAMES
from training.language.spectrograms import WINDOW, log_mel


def windows(samples: Tensor) -> list[Tensor]:
    """Return the log-mel spectrograms ``(mel, FRAMES)`` of the windows of ``samples (n,)``.

    Frames that a short clip lacks are 0, as the authors of AST pad.
    """
    if len(samples) < WINDOW:
        samples = F.pad(samples, (0, WINDOW - len(samples)))
    found = []
    for span in cut(len(samples), FRAMES, sys.maxsize):
        spectrogram = log_mel(samples[None, span])[0]  # (mel, frames)
        missing = FRAMES - spectrogram.shape[1]
        found.append(F.pad(spectrogram, (0, missing)))
    return found
