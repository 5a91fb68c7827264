"""The network: a small Audio Spectrogram Transformer, and what its input is."""

from __future__ import annotations

from torch import Tensor

from tome_core.networks.spectrogram_vit import SpectrogramViT
from training.language.corpus import LANGUAGES
from training.language.spectrograms import MEL_BINS

FRAMES = 216  # of a window, 2.2 s
# Mel filters below 4 kHz, the end of a telephone's band. The model learns to ignore the others.
BAND = 96
# Of log-mel values in the band, in the training recordings.
MEAN = -6.0
STD = 4.5


def build(drop_path: float = 0.0) -> SpectrogramViT:
    """Return the network with random weights: 254 tokens, 2.4 million parameters.

    It is AST, but its classifier reads the mean of the patches instead of that of its two tokens.
    """
    return SpectrogramViT(
        img_size=(MEL_BINS, FRAMES),
        patch_size=16,
        stride=10,
        num_classes=len(LANGUAGES),
        embed_dim=128,
        depth=12,
        num_heads=4,
        drop_path_rate=drop_path,
        global_pool="avg",
    )


def normalised(log_mels: Tensor) -> Tensor:
    """Return the input of the network from log-mel spectrograms of any shape."""
    return (log_mels - MEAN) / (2 * STD)
