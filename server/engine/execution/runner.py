"""Runs batches on one device: pixels in; the best classes, features or source maps out, as each image wants."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.device.forward import Floats, Forward
from server.engine.device.self_check import GRAPHS, REFERENCE, REFERENCE_GRAPHS
from server.engine.execution.in_flight import BatchInFlight
from server.engine.execution.prediction import Prediction
from server.engine.loading.model_loader import LoadedModel
from server.ipc.messages import OutputKind
from tome_core.schedule import Schedule, most_mergeable

log = logging.getLogger("tome.engine")


class Runner:
    """One model on one device. Not shared between threads."""

    def __init__(self, model: LoadedModel, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.dtype = str(next(model.network.parameters()).dtype).removeprefix("torch.")
        self.acceleration = model.acceleration
        self._forward = Forward(model.network, model.mean, model.std, device, model.spec.activation)

    def record_graphs(self, levels: Sequence[int], max_batch: int) -> None:
        """On a GPU, record the forward passes of ``levels``; they are used if they prove right.

        Raises:
            CaptureFailed: they could not be recorded, or not be run.
        """
        if self.device.type != "cuda":
            return
        most = most_mergeable(self.model.tokens, self.model.prefix)
        possible = [level for level in levels if level <= most]
        wrong = self._forward.record(possible, max_batch, self.model.transform.size)
        if wrong:
            name = self.model.spec.name
            log.warning("%s: CUDA graphs are not used, because running them %s", name, wrong)
        else:
            self.acceleration = REFERENCE_GRAPHS if self.acceleration == REFERENCE else GRAPHS

    @property
    def recorded(self) -> tuple[frozenset[Schedule], tuple[int, ...], bool]:
        """The schedules and the batch sizes that CUDA graphs run, and whether they run any mix as well."""
        return self._forward.recorded

    @torch.inference_mode()
    def logits(self, pixels: npt.NDArray[np.uint8], schedules: Sequence[Schedule]) -> Tensor:
        """Float32 logits ``(B, classes)`` of ``pixels``, uint8 ``(B, C, H, W)``, each image under its schedule."""
        return self._forward(pixels, schedules).logits.float()

    def room(self, images: int) -> npt.NDArray[np.uint8]:
        """Memory for the pixels of the next batch, ``(images, C, H, W)``, from where the device takes them."""
        return self._forward.room((images, *self.model.transform.size))

    @torch.inference_mode()
    def launch(
        self,
        pixels: npt.NDArray[np.uint8],
        schedules: Sequence[Schedule],
        top_k: Sequence[int],
        wants: Sequence[OutputKind] | None = None,
        floats: Floats | None = None,
    ) -> BatchInFlight:
        """Start one forward pass for all; the best ``top_k[i]`` classes of each image, or what else ``wants[i]`` says.

        At most two may be in flight: pixels have two places on their way to the device.
        """
        wants = wants or ["classes"] * len(pixels)
        most = min(max(top_k), len(self.model.labels))
        readout = self._forward.read(
            pixels, schedules, most, source="source" in wants, floats=floats
        )
        return BatchInFlight(readout, top_k, wants)

    def run(
        self,
        pixels: npt.NDArray[np.uint8],
        schedules: Sequence[Schedule],
        top_k: Sequence[int],
        wants: Sequence[OutputKind] | None = None,
        floats: Floats | None = None,
    ) -> list[Prediction]:
        """`launch`, and its results."""
        return self.launch(pixels, schedules, top_k, wants, floats).collect()

    def seconds(self, schedules: Sequence[Schedule]) -> float:
        """Time one batch of blank images under ``schedules``, from pixels to predictions."""
        pixels = self.room(len(schedules))
        pixels.fill(0)
        started = time.perf_counter()
        self.run(pixels, schedules, [1] * len(schedules))
        return time.perf_counter() - started

    def tokens(self, schedule: Schedule) -> tuple[int, ...]:
        """Token counts of one image: at the input and after each block."""
        model = self.model
        return schedule.tokens(model.depth, model.tokens, model.prefix)
