"""Runs batches of one model on one device."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from server.engine.device.forward import FloatImages, Forward, GraphCoverage
from server.engine.device.pinned_memory import InputArray
from server.engine.device.self_check import GRAPHS, REFERENCE, REFERENCE_GRAPHS
from server.engine.execution.image_input import ImageInput
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.in_flight import BatchInFlight
from server.engine.loading.label_vectors import text_heads
from server.engine.loading.model_loader import LoadedModel
from server.logs import log_step
from tome_core import Outputs
from tome_core.schedule import Schedule

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
            model.activation,
            getattr(torch, model.transform.dtype),
            text_heads(model.label_sets, model.activation, device),
        )

    def record_graphs(self, max_batch: int) -> None:
        """Record CUDA graphs of the levels on a GPU, and use them if they pass the self check.

        Raises:
            CaptureFailed: recording or running them raised.
        """
        is_reference = self.acceleration == REFERENCE
        # The plain network makes the host wait for pairs; no graph can record that.
        can_record = not is_reference or self.model.network.merging.rule == "paper"
        if self.device.type != "cuda" or not can_record:
            return
        image_size = self.model.transform.size
        name = self.model.spec.name
        with log_step(log, f"{name}: recording CUDA graphs on {self.device}, and their self check"):
            wrong = self._forward.record(self.model.levels, max_batch, image_size)
        if wrong:
            log.warning("%s: CUDA graphs are not used, because running them %s", name, wrong)
        else:
            self.acceleration = REFERENCE_GRAPHS if is_reference else GRAPHS

    @property
    def recorded(self) -> GraphCoverage:
        """What the CUDA graphs of the model serve."""
        return self._forward.recorded

    @torch.inference_mode()
    def logits(
        self,
        pixels: InputArray,
        schedules: Sequence[Schedule],
    ) -> Tensor:
        """Return float32 logits ``(B, classes)``, each image under its own schedule.

        Where there are label sets, those of the default.

        Args:
            pixels: ``(B, C, H, W)``, of the dtype of the model's transform.
        """
        return self.outputs(pixels, schedules).logits.float()

    @torch.inference_mode()
    def outputs(self, pixels: InputArray, schedules: Sequence[Schedule]) -> Outputs:
        """Return logits and pooled features; the arguments are those of `logits`."""
        return self._forward(pixels, schedules)

    @torch.inference_mode()
    def dense(self, pixels: InputArray, schedules: Sequence[Schedule]) -> Tensor:
        """Return float32 features of every patch, ``(B, patches, D)``; see `Forward.dense`."""
        return self._forward.dense(pixels, schedules).float()

    @torch.inference_mode()
    def launch(self, images: Sequence[ImageInput]) -> BatchInFlight:
        """Start one forward pass for all ``images``, whose pixels are copied.

        At most two batches may be in flight, since there are two buffers for pixels.
        """
        pixels, float_images = self._gather(images)
        most_labels = len(self.model.labels)
        label_sets: Sequence[str] = ()
        if any(image.label_set for image in images):
            images = [self._limited(image) for image in images]
            label_sets = [image.label_set for image in images]
            most_labels = max(len(one.labels) for one in self.model.label_sets.values())
        most_classes = max(image.top_k for image in images)
        readout = self._forward.run(
            pixels,
            [image.schedule for image in images],
            min(most_classes, most_labels),
            source=any(image.output_kind == "source" for image in images),
            float_images=float_images,
            label_sets=label_sets,
        )
        return BatchInFlight(readout, images)

    def _limited(self, image: ImageInput) -> ImageInput:
        """Return ``image`` with at most as many classes as its label set has."""
        labels = self.model.labels
        if image.label_set:
            labels = self.model.label_sets[image.label_set].labels
        return image._replace(top_k=min(image.top_k, len(labels)))

    def run(self, images: Sequence[ImageInput]) -> list[ImageOutput]:
        """Run one forward pass and wait for its results."""
        return self.launch(images).collect()

    def _gather(self, images: Sequence[ImageInput]) -> tuple[InputArray, FloatImages | None]:
        """Return the pixels ``(B, C, H, W)`` of the dtype of the model's transform.

        And the images among them that are float32 where the others are uint8. The device reads from
        the array of pixels, so they need no further copy.
        """
        shape = (len(images), *self.model.transform.size)
        pixels = self._forward.pixel_buffer(shape)
        float_rows = []
        for row, image in enumerate(images):
            if image.pixels.dtype == pixels.dtype:
                pixels[row] = image.pixels
            else:
                float_rows.append(row)
        if not float_rows:
            return pixels, None
        values = np.stack([images[row].pixels for row in float_rows]).astype(np.float32, copy=False)
        return pixels, FloatImages(float_rows, values)

    def seconds(self, schedules: Sequence[Schedule]) -> float:
        """Time one batch of blank images under ``schedules``, from pixels to predictions."""
        blank = np.zeros(self.model.transform.size, self.model.transform.dtype)
        images = [ImageInput(blank, schedule, top_k=1) for schedule in schedules]
        started = time.perf_counter()
        self.run(images)
        return time.perf_counter() - started

    def embedding_dim(self) -> int:
        """Return how many pooled features the model has, by a pass of a blank image.

        Not always as many as its tokens are wide: some models pool two vectors into one.
        """
        blank = np.zeros((1, *self.model.transform.size), self.model.transform.dtype)
        return self.outputs(blank, [Schedule.constant(0)]).features.shape[-1]

    def tokens(self, schedule: Schedule) -> tuple[int, ...]:
        """Return the token counts of one image: at the input and after each block."""
        model = self.model
        return schedule.tokens(model.depth, model.tokens, model.prefix)
