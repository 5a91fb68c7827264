"""Accuracy over clips: the probabilities of a clip's windows are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.language.clips import Clip
from training.language.network import normalised
from training.language.tape import waveform
from training.language.windows import windows

BATCH = 256  # windows
SPREAD = 1.96  # standard deviations of a 95% interval


@dataclass(frozen=True)
class Windows:
    """The windows of a set of clips.

    Attributes:
        inputs: ``(windows, 1, mel, frames)``, normalised.
        clips: number of each window's clip.
        labels: of the clips.
    """

    inputs: Tensor
    clips: Tensor
    labels: Tensor


def windows_of(clips: Sequence[Clip], device: torch.device) -> Windows:
    """Return the windows of ``clips`` on ``device``."""
    inputs = []
    numbers = []
    for number, clip in enumerate(clips):
        found = windows(waveform(clip, device))
        inputs += found
        numbers += [number] * len(found)
    return Windows(
        inputs=normalised(torch.stack(inputs))[:, None],
        clips=torch.tensor(numbers, device=device),
        labels=torch.tensor([clip.label for clip in clips], device=device),
    )


@torch.inference_mode()
def predictions(model: nn.Module, found: Windows, **options: Any) -> Tensor:
    """Return the class ``(clips,)`` of each clip."""
    model.eval()
    dtype = next(model.parameters()).dtype
    logits = [model(batch.to(dtype), **options).float() for batch in found.inputs.split(BATCH)]
    return clip_classes(torch.cat(logits), found)


def clip_classes(logits: Tensor, found: Windows) -> Tensor:
    """Return the class ``(clips,)`` of each clip from ``logits (windows, classes)``."""
    probabilities = logits.softmax(dim=-1)
    sums = probabilities.new_zeros(len(found.labels), probabilities.shape[1])
    return sums.index_add(0, found.clips, probabilities).argmax(dim=1)


def wilson(hits: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of the share ``hits / total``."""
    if total == 0:
        return 0.0, 1.0
    share = hits / total
    square = SPREAD**2 / total
    centre = (share + square / 2) / (1 + square)
    half = SPREAD / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return centre - half, centre + half


def loss(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Return how much accuracy is lost, as a share of the clips, and its standard error.

    Args:
        before, after: whether each clip ``(clips,)`` is classified right; the same clips.
    """
    differences = before.double() - after.double()
    error = differences.std() / math.sqrt(len(differences))
    return differences.mean().item(), error.item()
