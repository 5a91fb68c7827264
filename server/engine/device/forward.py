"""From pixels in the host's memory to what a network says of them, on one device."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.device import self_check
from server.engine.device.cuda_graphs import CudaRecorder, GraphRecord, Graphs
from server.engine.device.graph_inputs import GraphInputs
from server.engine.device.pinned_memory import PinnedMemory
from server.engine.device.readout import Readout, read_out
from tome_core import MergedViT, Outputs, Pixels
from tome_core.backends.cpu import kernels
from tome_core.pixels import normalised
from tome_core.ragged.plan import BoundedPlan
from tome_core.schedule import Schedule

RECORDED_TOP = 10  # classes that a graph reads out; for more, its logits are read again


@dataclass(frozen=True)
class Floats:
    """The images of a batch that came normalised: ``values``, float32 ``(n, C, H, W)``, and their ``rows`` in it."""

    rows: Sequence[int]
    values: npt.NDArray[np.float32]


class CaptureFailed(Exception):
    """Recording CUDA graphs, or running them, raised; nobody knows in what state that left the device's memory."""


class Forward:
    """A network, its normalisation, and how its outputs are read. Not shared between threads.

    Args:
        mean, std: per channel, for pixels on a scale of 0 to 1.
        activation: of the scores; see `server.engine.device.readout`.
    """

    def __init__(
        self,
        network: MergedViT,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        activation: str = "softmax",
    ) -> None:
        self.network = network
        self._device = device
        self._activation = activation
        # Normalisation as one multiply-add on pixels of 0 to 255.
        means, stds = (torch.tensor(values, device=device) for values in (mean, std))
        self._scale = 1 / (255 * stds)
        self._shift = -means / stds
        self._dtype = next(network.parameters()).dtype
        self._by_kernel = device.type == "cpu" and kernels.supports(self._dtype)
        self._staging: PinnedMemory | None = None
        self._graphs: Graphs | None = None

    def room(self, shape: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
        """Memory to gather the pixels of the next batch into, ``(B, C, H, W)``: what is there needs no further copy."""
        if self._device.type != "cuda":
            return np.empty(shape, np.uint8)
        self._staging = self._staging or PinnedMemory(self._device)
        return self._staging.room(shape)

    @torch.inference_mode()
    def __call__(
        self, pixels: npt.NDArray[np.uint8], schedules: Sequence[Schedule], **options: Any
    ) -> Outputs:
        """Outputs of a batch, in memory of their own; arguments as those of `read`."""
        outputs = self.read(pixels, schedules, 0, **options).outputs
        return Outputs(outputs.logits.clone(), outputs.features.clone(), outputs.source)

    @torch.inference_mode()
    def read(
        self,
        pixels: npt.NDArray[np.uint8],
        schedules: Sequence[Schedule],
        top: int,
        *,
        source: bool = False,
        floats: Floats | None = None,
    ) -> Readout:
        """Read out ``pixels``, uint8 ``(B, C, H, W)``, each image under its schedule.

        Good until the next call, on the stream that it was made on.

        Args:
            top: classes wanted of each image at least, as far as there are so many.
            source: give source maps too, as `MergedViT.outputs`.
            floats: images that take the place of their rows of ``pixels``, whatever lies there.
        """
        graphs = self._graphs if not source and floats is None else None
        if graphs and (found := graphs.find(schedules)):
            self._copy(pixels, graphs.pixels[: len(pixels)])
            readout = graphs.run(found, len(pixels))
            return (
                readout if readout.top >= top else read_out(readout.outputs, self._activation, top)
            )
        images = torch.from_numpy(pixels)
        if self._device.type != "cpu":
            images = self._copy(
                pixels, torch.empty(pixels.shape, dtype=torch.uint8, device=self._device)
            )
        given = self._given(images) if floats is None else self._with_floats(images, floats)
        outputs = self.network.outputs(given, r=list(schedules), source=source)
        return read_out(outputs, self._activation, top)

    @torch.inference_mode()
    def record(
        self,
        levels: Sequence[int],
        max_batch: int,
        size: tuple[int, int, int],
        record: GraphRecord | None = None,
    ) -> str:
        """Record graphs for ``levels`` and batches up to ``max_batch``, and prove each; none is used if one is wrong.

        Args:
            size: ``(C, H, W)`` of an image.
            record: how; default CUDA graphs.

        Returns:
            What is wrong with their answers; empty if nothing.

        Raises:
            CaptureFailed: they could not be recorded, or not be run.
        """
        schedules = [Schedule.constant(level) for level in levels]
        pixels = torch.zeros(max_batch, *size, dtype=torch.uint8, device=self._device)
        try:
            mixes = self._mixes(pixels) if self.network.takes_bounds else None
            graphs = Graphs(self.recordable, pixels, record or CudaRecorder(self._device), mixes)
            graphs.record(schedules)
            wrong = self._wrong(graphs)
        except Exception as error:  # whatever recording raises concerns the graphs alone
            raise CaptureFailed(self_check.describe(error)) from error
        if not wrong:
            self._graphs = graphs
        return wrong

    @property
    def recorded(self) -> tuple[frozenset[Schedule], tuple[int, ...], bool]:
        """The schedules and the batch sizes that there are graphs of, and whether these run any mix as well."""
        graphs = self._graphs
        return (
            (frozenset(), (), False)
            if graphs is None
            else (graphs.schedules, graphs.buckets, bool(graphs.mixes))
        )

    def recordable(self, pixels: Tensor, r: Schedule | Sequence[Schedule] | BoundedPlan) -> Readout:
        """From uint8 pixels on the device: what a graph records, under one schedule or within bounds."""
        outputs = self.network.outputs(self._given(pixels), r=r)
        return read_out(outputs, self._activation, RECORDED_TOP)

    def _mixes(self, pixels: Tensor) -> GraphInputs:
        tokens = self.network.input_tokens(self._given(pixels[:1]))
        return GraphInputs(
            lambda schedule: self.network.token_counts(schedule, tokens), len(pixels), self._device
        )

    def _wrong(self, graphs: Graphs) -> str:
        """In what the graphs differ from the operators that they recorded, more than those differ from each other.

        These run in two ways, since other numbers of rows may be multiplied in another order.
        """
        generator = torch.Generator().manual_seed(0)
        graphs.pixels.copy_(
            torch.randint(0, 256, graphs.pixels.shape, dtype=torch.uint8, generator=generator)
        )
        source = random.Random(0)
        found = []
        noise = []
        read = []
        for trial, schedules in graphs.trials(source):
            images = graphs.pixels[: len(schedules)]
            exact = self.recordable(images, schedules).outputs.logits
            readout = graphs.run(trial, len(schedules))
            found += self_check.errors([readout.outputs.logits], [exact])
            noise += self_check.errors([self._otherwise(images, schedules)], [exact])
            expected = read_out(readout.outputs, self._activation, readout.top)
            read += self_check.errors([readout.best], [expected.best])
        resolution = torch.finfo(exact.dtype).eps
        return self_check.judge(found, noise, resolution) or self_check.judge(
            read, [0.0], resolution
        )

    def _otherwise(self, pixels: Tensor, schedules: Sequence[Schedule]) -> Tensor:
        """Logits of the same images in two halves; of one image, of two like it."""
        half = len(schedules) // 2
        if not half:
            return self.recordable(pixels.repeat(2, 1, 1, 1), [*schedules] * 2).outputs.logits[:1]
        parts = slice(half), slice(half, None)
        return torch.cat(
            [self.recordable(pixels[part], schedules[part]).outputs.logits for part in parts]
        )

    def _given(self, pixels: Tensor) -> Tensor | Pixels:
        """What the network is given, which normalises ``pixels`` itself where no kernel of ours does it before."""
        if self._by_kernel:
            return kernels.normalise(pixels, self._scale, self._shift, self._dtype)
        return Pixels(pixels, self._scale, self._shift)

    def _with_floats(self, pixels: Tensor, floats: Floats) -> Tensor:
        images = normalised(self._given(pixels))
        rows = torch.tensor(floats.rows, device=self._device)
        images[rows] = torch.from_numpy(floats.values).to(images)
        return images

    def _copy(self, pixels: npt.NDArray[np.uint8], into: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return into.copy_(torch.from_numpy(pixels))
        self._staging = self._staging or PinnedMemory(self._device)
        return self._staging.copy(pixels, into)
