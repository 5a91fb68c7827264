"""A tiny model of sound beside the tiny one of images: windows of 1.28 seconds, 3 classes."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from tests.server.engine.tiny import write_tiny
from tome_core.networks import audio_architectures

FRAMES = 128
WINDOW_SECONDS = 1.28
LABELS = ("bark", "meow", "song")
ARCHITECTURE = audio_architectures.AST_ARCHITECTURES[0]
ARGUMENTS = {"embed_dim": 32, "depth": 2, "num_heads": 2, "stride": 16}
TABLE = """
[[models]]
name = "ear"
timm = "ast_tiny_patch16"
modality = "audio"
checkpoint = "ear.safetensors"
labels = "ear.txt"
img_size = [128, 128]
activation = "softmax"
model_args = { embed_dim = 32, depth = 2, num_heads = 2, stride = 16 }
"""


def write_models(folder: Path) -> Path:
    """Save ``tiny`` and ``ear`` with random weights; return the path of the models file."""
    models = write_tiny(folder)
    torch.manual_seed(0)
    vit = timm.create_model(
        ARCHITECTURE, img_size=(128, FRAMES), num_classes=len(LABELS), **ARGUMENTS
    )
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(vit.state_dict(), folder / "ear.safetensors")
    (folder / "ear.txt").write_text("\n".join(LABELS))
    with models.open("a") as file:
        file.write(TABLE)
    return models


def sound(seconds: float, seed: int = 0, rate: int = 16_000) -> bytes:
    """A WAV of chirps in noise, one channel of 16 bits."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    frequency = generator.uniform(200, 2000)
    tone = np.sin(2 * np.pi * frequency * time * (1 + 0.2 * time / max(seconds, 1e-9)))
    noise = generator.normal(0, 0.05, len(time))
    samples = np.rint((0.4 * tone + noise) * 20_000).astype("<i2")
    body = io.BytesIO()
    with wave.open(body, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return body.getvalue()
