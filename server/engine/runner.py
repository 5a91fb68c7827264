"""Runs batches on one device: pixels in, the best classes out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.forward import Forward
from server.engine.loading import LoadedModel
from server.engine.proving import REFERENCE
from tome_core.schedule import Schedule, most_mergeable

log = logging.getLogger("tome.engine")


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
        self.acceleration = model.acceleration
        self._forward = Forward(model.network, model.mean, model.std, device)

    def record_graphs(self, levels: Sequence[int], max_batch: int) -> None:
        """On a GPU, record the forward passes of ``levels``, unless something is wrong there."""
        if self.device.type != "cuda" or self.acceleration == REFERENCE:
            return
        most = most_mergeable(self.model.tokens, self.model.prefix)
        possible = [level for level in levels if level <= most]
        wrong = self._forward.record(possible, max_batch, self.model.transform.size)
        if wrong:
            log.warning(
                "%s: CUDA graphs are not used, because recording or running them %s", self.model.spec.name, wrong
            )
        else:
            self.acceleration = "graphs"

    @torch.inference_mode()
    def logits(self, pixels: npt.NDArray[np.uint8], schedules: Sequence[Schedule]) -> Tensor:
        """Float32 logits ``(B, classes)`` of ``pixels``, uint8 ``(B, C, H, W)``, each image under its schedule."""
        return self._forward(pixels, schedules).logits.float()

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
