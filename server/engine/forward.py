"""From pixels in the host's memory to what a network says of them, on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine import proving
from server.engine.graphs import CudaRecorder, Graphs, Record
from server.engine.staging import Staging
from tome_core import MergedViT, Outputs, native
from tome_core.schedule import Schedule


@dataclass(frozen=True)
class Floats:
    """The images of a batch that came normalised: ``values``, float32 ``(n, C, H, W)``, and their ``rows`` in it."""

    rows: Sequence[int]
    values: npt.NDArray[np.float32]


class Forward:
    """A network and its normalisation. Not shared between threads.

    Args:
        mean, std: per channel, for pixels on a scale of 0 to 1.
    """

    def __init__(self, network: MergedViT, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.network, self._device = network, device
        # Normalisation as one multiply-add on pixels of 0 to 255.
        means, stds = (torch.tensor(values, device=device) for values in (mean, std))
        self._scale, self._shift = 1 / (255 * stds), -means / stds
        self._dtype = next(network.parameters()).dtype
        self._by_kernel = device.type == "cpu" and native.supports(self._dtype)
        self._staging: Staging | None = None
        self._graphs: Graphs | None = None

    @torch.inference_mode()
    def __call__(
        self,
        pixels: npt.NDArray[np.uint8],
        schedules: Sequence[Schedule],
        *,
        source: bool = False,
        floats: Floats | None = None,
    ) -> Outputs:
        """Outputs of ``pixels``, uint8 ``(B, C, H, W)``, each image under its schedule.

        Args:
            source: give source maps too, as `MergedViT.outputs`.
            floats: images that take the place of their rows of ``pixels``, whatever lies there.
        """
        graph = self._graphs.find(schedules) if self._graphs and not source and floats is None else None
        if graph is not None:
            self._copy(pixels, graph.pixels[: len(pixels)])
            return graph.run(len(pixels))
        images = torch.from_numpy(pixels)
        if self._device.type != "cpu":
            images = self._copy(pixels, torch.empty(pixels.shape, dtype=torch.uint8, device=self._device))
        images = self._normalised(images)
        if floats is not None:
            rows = torch.tensor(floats.rows, device=self._device)
            images[rows] = torch.from_numpy(floats.values).to(images)
        return self.network.outputs(images, r=list(schedules), source=source)

    @torch.inference_mode()
    def record(
        self, levels: Sequence[int], max_batch: int, size: tuple[int, int, int], record: Record | None = None
    ) -> str:
        """Record graphs for ``levels`` and batches up to ``max_batch``, and prove each; none is used if one is wrong.

        Args:
            size: ``(C, H, W)`` of an image.
            record: how; default CUDA graphs.

        Returns:
            What is wrong; empty if nothing.
        """
        schedules = [Schedule.constant(level) for level in levels]
        pixels = torch.zeros(max_batch, *size, dtype=torch.uint8, device=self._device)
        try:
            graphs = Graphs(self.uniform, pixels, record or CudaRecorder(self._device))
            graphs.record(schedules)
            wrong = self._wrong(graphs)
        except Exception as error:  # whatever recording raises concerns the graphs alone
            wrong = proving.describe(error)
        if not wrong:
            self._graphs = graphs
        return wrong

    def uniform(self, pixels: Tensor, schedule: Schedule) -> Outputs:
        """Outputs of uint8 pixels on the device, all under one schedule: what a graph records."""
        return self.network.outputs(self._normalised(pixels), r=schedule)

    def _wrong(self, graphs: Graphs) -> str:
        """In what the graphs differ from the operators that they recorded, more than those do when they run again."""
        generator, found, noise = torch.Generator().manual_seed(0), [], []
        for schedule, graph in graphs.items():
            images = torch.randint(0, 256, graph.pixels.shape, dtype=torch.uint8, generator=generator)
            graph.pixels.copy_(images)
            exact, again = (self.uniform(graph.pixels, schedule).logits for _ in range(2))
            found += proving.errors([graph.run(len(images)).logits], [exact])
            noise += proving.errors([again], [exact])
        return proving.judge(found, noise, torch.finfo(exact.dtype).eps)

    def _normalised(self, pixels: Tensor) -> Tensor:
        if self._by_kernel:
            return native.normalise(pixels, self._scale, self._shift, self._dtype)
        return pixels * self._scale.view(-1, 1, 1) + self._shift.view(-1, 1, 1)

    def _copy(self, pixels: npt.NDArray[np.uint8], into: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return into.copy_(torch.from_numpy(pixels))
        self._staging = self._staging or Staging(self._device)
        return self._staging.copy(pixels, into)
