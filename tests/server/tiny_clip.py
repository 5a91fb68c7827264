"""A tiny model of video beside the tiny one of images: clips of 8 frames of 32x32, 5 classes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from tests.server.engine.tiny import write_tiny
from tome_core.networks import video_architectures

FRAMES = 8
SIDE = 32
TUBELET = 2
PATCH = 8
TOKENS = FRAMES // TUBELET * (SIDE // PATCH) ** 2  # without a class token
LABELS = ("left", "right", "up", "down", "still")
ARCHITECTURE = video_architectures.VIDEO_ARCHITECTURES[0]
ARGUMENTS = {
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "patch_size": PATCH,
    "frames": FRAMES,
    "tubelet": TUBELET,
}
TABLE = """
[[models]]
name = "clip"
timm = "video_vit_tiny_patch16"
modality = "video"
checkpoint = "clip.safetensors"
labels = "clip.txt"
img_size = 32
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
crop_pct = 1.0
stride = 2
model_args = { embed_dim = 32, depth = 2, num_heads = 2, frames = 8 }
"""


def write_models(folder: Path) -> Path:
    """Save ``tiny`` and ``clip`` with random weights; return the path of the models file."""
    models = write_tiny(folder)
    add_clip(models)
    return models


def add_clip(models: Path) -> None:
    """Save ``clip``, and add it to the models file ``models``."""
    write_clip(models.parent)
    with models.open("a") as file:
        file.write(TABLE)


def create_clip() -> torch.nn.Module:
    """Return the network of ``clip`` as timm runs it, the same each time."""
    vit = timm.create_model(ARCHITECTURE, img_size=SIDE, num_classes=len(LABELS), **ARGUMENTS)
    generator = torch.Generator().manual_seed(0)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return vit.eval()


def write_clip(folder: Path) -> None:
    """Save the checkpoint and the labels that `TABLE` names."""
    save_file(create_clip().state_dict(), folder / "clip.safetensors")
    (folder / "clip.txt").write_text("\n".join(LABELS))


def video(
    frames: int, seed: int = 0, *, rate: int = 10, width: int = 64, height: int = 48
) -> bytes:
    """An MP4 of a bright square that moves over noise, in MPEG-4 (part 2)."""
    import av

    generator = np.random.default_rng(seed)
    background = generator.integers(0, 100, (height, width, 3), np.uint8)
    x, y, dx, dy = generator.integers(0, 8, 4)
    body = io.BytesIO()
    with av.open(body, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = background.copy()
            left = (x + dx * number) % (width - 12)
            top = (y + dy * number) % (height - 12)
            picture[top : top + 12, left : left + 12] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return body.getvalue()
