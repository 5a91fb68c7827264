"""A tiny model of sound with random weights, and sounds for it.

Its windows have 128 frames: sample 0 to 20,720 at 16 kHz, then from 20,480 on. It has 66 tokens.
"""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("soundfile", reason="needs the extra audio")

import transformers as hf

WINDOW_SECONDS = 1.28
LABELS = {0: "low", 1: "high", 2: "noise"}
ENTRY = """
[[models]]
name = "sounds"
timm = "local-dir:ast"
"""


def write_ast(folder: Path) -> Path:
    """Save the model as transformers does; return the path of a models file with it alone."""
    config = hf.ASTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        patch_size=16,
        frequency_stride=16,
        time_stride=16,
        max_length=128,
        id2label=LABELS,
    )
    torch.manual_seed(0)
    network = hf.ASTForAudioClassification(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder / "ast")
    hf.ASTFeatureExtractor(max_length=128).save_pretrained(folder / "ast")
    (folder / "models.toml").write_text(ENTRY)
    return folder / "models.toml"


def make_wav(seconds: float, hertz: float = 440.0, rate: int = 16_000, channels: int = 1) -> bytes:
    """Return a tone with some noise as a WAV file of 16-bit samples."""
    count = round(seconds * rate)
    time = np.arange(count) / rate
    noise = np.random.default_rng(0).normal(0, 0.001, count)
    samples = np.round(20_000 * (0.7 * np.sin(2 * np.pi * hertz * time) + noise))
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.astype("<i2")[:, None].repeat(channels, 1).tobytes())
    return file.getvalue()
