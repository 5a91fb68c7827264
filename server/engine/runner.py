"""Runs batches on one device: pixels in, the best classes out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.loading import LoadedModel
from tome_core.schedule import Schedule


@dataclass(frozen=True)
class Prediction:
    """The best classes of one image, best first; ``finite`` is False where the model gave NaN or infinity."""

    scores: tuple[float, ...]
    classes: tuple[int, ...]
    finite: bool


class Runner:
    """One model on one device. Not shared between threads."""

    def __init__(self, model: LoadedModel, device: torch.device) -> None:
        self.model, self.device = model, device
        self.dtype = str(next(model.network.parameters()).dtype).removeprefix("torch.")
        # Normalisation as one multiply-add on pixels of 0 to 255.
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (model.mean, model.std))
        self._scale, self._shift = 1 / (255 * std), -mean / std

    @torch.inference_mode()
    def logits(self, pixels: npt.NDArray[np.uint8], schedules: Sequence[Schedule]) -> Tensor:
        """Float32 logits ``(B, classes)`` of ``pixels``, uint8 ``(B, C, H, W)``, each image under its schedule."""
        images = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        images = images * self._scale + self._shift
        return self.model.network(images, r=list(schedules)).float()

    @torch.inference_mode()
    def run(
        self, pixels: npt.NDArray[np.uint8], schedules: Sequence[Schedule], top_k: Sequence[int]
    ) -> list[Prediction]:
        """The best ``top_k[i]`` classes of each image."""
        logits = self.logits(pixels, schedules)
        finite = logits.isfinite().all(dim=-1)
        scores, classes = logits.softmax(dim=-1).topk(max(top_k), dim=-1)
        rows = zip(scores.tolist(), classes.tolist(), finite.tolist(), top_k, strict=True)
        return [Prediction(tuple(s[:k]), tuple(c[:k]), ok) for s, c, ok, k in rows]

    def seconds(self, batch: int, schedule: Schedule) -> float:
        """Time one batch of ``batch`` blank images, from pixels to predictions."""
        pixels = np.zeros((batch, *self.model.transform.size), np.uint8)
        started = time.perf_counter()
        self.run(pixels, [schedule] * batch, [1] * batch)
        return time.perf_counter() - started

    def tokens(self, schedule: Schedule) -> tuple[int, ...]:
        """Token counts of one image: at the input and after each block."""
        model = self.model
        return schedule.tokens(model.depth, model.tokens, model.prefix)
