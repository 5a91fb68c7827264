"""Runs batches of one model on one device."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.device.forward import FloatImages, Forward, GraphCoverage
from server.engine.device.self_check import GRAPHS, REFERENCE, REFERENCE_GRAPHS
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.in_flight import BatchInFlight
from server.engine.loading.model_loader import LoadedModel
from server.ipc.messages import OutputKind
from server.logs import log_step
from tome_core.schedule import Schedule
from tome_core.split import most_mergeable

log = logging.getLogger("tome.engine")


class Runner:
    """Runs batches: pixels in; classes, features or source maps out, as each image requests.

    Not shared between threads.

    Attributes:
        dtype: of the network's parameters, as in ``float32``.
        acceleration: see `server.ipc.messages.ModelInfo`.
    """

    def __init__(self, model: LoadedModel, device: torch.device) -> None:
        self.model = model
        self.device = device
        parameter = next(model.network.parameters())
        self.dtype = str(parameter.dtype).removeprefix("torch.")
        self.acceleration = model.acceleration
        self._forward = Forward(
            model.network,
            model.mean,
            model.std,
            device,
            model.spec.activation,
        )

    def record_graphs(self, levels: Sequence[int], max_batch: int) -> None:
        """Record CUDA graphs of ``levels`` on a GPU, and use them if they pass the self check.

        Raises:
            CaptureFailed: recording or running them raised.
        """
        if self.device.type != "cuda":
            return
        largest = most_mergeable(self.model.tokens, self.model.prefix)
        supported = [level for level in levels if level <= largest]
        image_size = self.model.transform.size
        name = self.model.spec.name
        with log_step(log, f"{name}: recording CUDA graphs on {self.device}, and their self check"):
            wrong = self._forward.record(supported, max_batch, image_size)
        if wrong:
            log.warning("%s: CUDA graphs are not used, because running them %s", name, wrong)
        else:
            is_reference = self.acceleration == REFERENCE
            self.acceleration = REFERENCE_GRAPHS if is_reference else GRAPHS

    @property
    def recorded(self) -> GraphCoverage:
        """What the CUDA graphs of the model serve."""
        return self._forward.recorded

    @torch.inference_mode()
    def logits(
        self,
        pixels: npt.NDArray[np.uint8],
        schedules: Sequence[Schedule],
    ) -> Tensor:
        """Return float32 logits ``(B, classes)``, each image under its own schedule.

        Args:
            pixels: uint8 ``(B, C, H, W)``.
        """
        return self._forward(pixels, schedules).logits.float()

    def pixel_buffer(self, images: int) -> npt.NDArray[np.uint8]:
        """Return the buffer for the pixels of the next batch, uint8 ``(images, C, H, W)``.

        The device reads from it, so pixels that are written there need no further copy.
        """
        channels, height, width = self.model.transform.size
        return self._forward.pixel_buffer((images, channels, height, width))

    @torch.inference_mode()
    def launch(
        self,
        pixels: npt.NDArray[np.uint8],
        schedules: Sequence[Schedule],
        top_k: Sequence[int],
        output_kinds: Sequence[OutputKind] | None = None,
        float_images: FloatImages | None = None,
    ) -> BatchInFlight:
        """Start one forward pass for all images.

        At most two batches may be in flight, since there are two buffers for pixels.

        Args:
            pixels: uint8 ``(B, C, H, W)``.
            schedules: one for each image.
            top_k: number of classes that each image requests.
            output_kinds: the output that each image requests; default ``classes``.
            float_images: images that come normalised, in place of their rows of ``pixels``.
        """
        output_kinds = output_kinds or ["classes"] * len(pixels)
        most_classes = min(max(top_k), len(self.model.labels))
        readout = self._forward.run(
            pixels,
            schedules,
            most_classes,
            source="source" in output_kinds,
            float_images=float_images,
        )
        return BatchInFlight(readout, top_k, output_kinds)

    def run(
        self,
        pixels: npt.NDArray[np.uint8],
        schedules: Sequence[Schedule],
        top_k: Sequence[int],
        output_kinds: Sequence[OutputKind] | None = None,
        float_images: FloatImages | None = None,
    ) -> list[ImageOutput]:
        """Run one forward pass and wait for its results. Arguments are those of `launch`."""
        in_flight = self.launch(pixels, schedules, top_k, output_kinds, float_images)
        return in_flight.collect()

    def seconds(self, schedules: Sequence[Schedule]) -> float:
        """Time one batch of blank images under ``schedules``, from pixels to predictions."""
        images = len(schedules)
        pixels = self.pixel_buffer(images)
        pixels.fill(0)
        started = time.perf_counter()
        self.run(pixels, schedules, top_k=[1] * images)
        return time.perf_counter() - started

    def tokens(self, schedule: Schedule) -> tuple[int, ...]:
        """Return the token counts of one image: at the input and after each block."""
        model = self.model
        return schedule.tokens(model.depth, model.tokens, model.prefix)
