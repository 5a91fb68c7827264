"""Runs batches on one device: pixels in; the best classes, features or source maps out, as each image wants."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.forward import Floats, Forward
from server.engine.loading import LoadedModel
from server.engine.proving import REFERENCE
from server.messages import Want
from tome_core.schedule import Schedule, most_mergeable

log = logging.getLogger("tome.engine")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
    "none": lambda logits: logits,
}


@dataclass(frozen=True)
class Prediction:
    """What one image gave, as far as it was wanted; see `server.messages.Outcome`.

    Attributes:
        finite: False where the model gave NaN or infinity.
    """

    scores: tuple[float, ...]
    classes: tuple[int, ...]
    finite: bool
    features: bytes = b""
    source: bytes = b""


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
        self,
        pixels: npt.NDArray[np.uint8],
        schedules: Sequence[Schedule],
        top_k: Sequence[int],
        wants: Sequence[Want] | None = None,
        floats: Floats | None = None,
    ) -> list[Prediction]:
        """One forward pass for all; the best ``top_k[i]`` classes of each image, or what else ``wants[i]`` says."""
        wants = wants or ["classes"] * len(pixels)
        outputs = self._forward(pixels, schedules, source="source" in wants, floats=floats)
        logits = outputs.logits.float()
        finite = logits.isfinite().all(dim=-1) & outputs.features.isfinite().all(dim=-1)
        most = min(max(top_k), len(self.model.labels))
        scores, classes = (best.tolist() for best in ACTIVATIONS[self.model.spec.activation](logits).topk(most, dim=-1))
        features = pack_rows(outputs.features.float(), [want == "features" for want in wants])
        source = [b""] * len(pixels)
        if outputs.source is not None:
            source = pack_rows(outputs.source.int(), [want == "source" for want in wants])
        rows = zip(scores, classes, finite.tolist(), features, source, top_k, strict=True)
        return [Prediction(tuple(s[:k]), tuple(c[:k]), ok, f, m) for s, c, ok, f, m, k in rows]

    def seconds(self, schedules: Sequence[Schedule]) -> float:
        """Time one batch of blank images under ``schedules``, from pixels to predictions."""
        pixels = np.zeros((len(schedules), *self.model.transform.size), np.uint8)
        started = time.perf_counter()
        self.run(pixels, schedules, [1] * len(schedules))
        return time.perf_counter() - started

    def tokens(self, schedule: Schedule) -> tuple[int, ...]:
        """Token counts of one image: at the input and after each block."""
        model = self.model
        return schedule.tokens(model.depth, model.tokens, model.prefix)


def pack_rows(values: Tensor, wanted: Sequence[bool]) -> list[bytes]:
    """The rows of ``values (B, N)`` that are wanted as little-endian bytes, and nothing for the others."""
    if not any(wanted):
        return [b""] * len(wanted)
    rows = values.cpu().numpy()
    little = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    return [row.tobytes() if want else b"" for row, want in zip(little, wanted, strict=True)]
