"""What the peers run: Pillow's resize, and a network of next to no cost.

Our own server runs a ViT of one block, which costs more.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from benchmarks.front_end.bodies import SIZE

CHANNELS = 16
CLASSES = 10
TOP = 5
BATCH = 16
WAIT_MILLISECONDS = 10
DECODERS = 2  # processes of a peer that decode

Pixels = npt.NDArray[np.uint8]


def decode(data: bytes) -> Pixels:
    """An encoded picture as ``uint8 (1, 3, 224, 224)``."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)[None])


def as_pixels(data: bytes) -> Pixels:
    """A body of pixels as ``uint8 (n, 3, 224, 224)``, without a copy."""
    return np.frombuffer(data, np.uint8).reshape(-1, 3, SIZE, SIZE)


class Classifier:
    """Patch embedding of stride 16, mean and linear, with random weights, in one thread."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        self._network = nn.Sequential(
            nn.Conv2d(3, CHANNELS, kernel_size=16, stride=16),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(CHANNELS, CLASSES),
        ).eval()

    def classify(self, requests: Sequence[Pixels]) -> list[list[dict[str, Any]]]:
        """Return for each request the best classes of each of its images ``(n, 3, 224, 224)``."""
        images = torch.from_numpy(np.concatenate(requests))
        with torch.inference_mode():
            scores = self._network(images.float().sub_(127.5).div_(127.5)).softmax(-1)
            best = scores.topk(TOP)
        answers = [
            {"scores": values, "classes": classes}
            for values, classes in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        remaining = iter(answers)
        return [[next(remaining) for _ in range(len(request))] for request in requests]
