"""Accuracy over clips: the probabilities of a clip's windows are averaged."""

from __future__ import annotations

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
