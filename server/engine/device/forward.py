"""The forward pass on one device: from pixels in host memory to the readout of the outputs.

Pixels are the inputs of a model: uint8 of an image, which are normalised here; or float32 of a
spectrogram, which are normalised already.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.device import self_check
from server.engine.device.cuda_graphs import CudaRecorder, Graphs, Recorder
from server.engine.device.graph_inputs import GraphInputs
from server.engine.device.pinned_memory import InputArray, PinnedMemory
from server.engine.device.readout import Readout, read_out
from server.engine.device.text_head import TextHeads
from server.engine.device.tolerance import judge, relative_errors
from tome_core import MergedViT, Outputs, Pixels
from tome_core.backends.cpu import kernels
from tome_core.pixels import normalised
from tome_core.ragged.plan import BoundedPlan
from tome_core.schedule import Schedule

# Classes that a graph reads out: twice the default top_k. A request for more classes
# reads the graph's logits again, which costs a few kernel launches.
RECORDED_TOP = 10
NUMPY_DTYPES: dict[torch.dtype, type[np.generic]] = {
    torch.uint8: np.uint8,
    torch.float32: np.float32,
}


@dataclass(frozen=True)
class FloatImages:
    """The images of a batch that are already normalised.

    Attributes:
        rows: their indices in the batch.
        values: float32 ``(n, C, H, W)``.
    """

    rows: Sequence[int]
    values: npt.NDArray[np.float32]


class GraphCoverage(NamedTuple):
    """What the CUDA graphs of a network serve.

    Attributes:
        schedules: that have graphs.
        buckets: batch sizes in which all of them are recorded.
        any_mix: whether the graphs serve any mix of schedules as well.
    """

    schedules: frozenset[Schedule]
    buckets: tuple[int, ...]
    any_mix: bool


class CaptureFailed(Exception):
    """Recording or running CUDA graphs raised. The state of the device's memory is unknown."""


class Forward:
    """A network with its normalisation and its readout. Not thread-safe.

    Args:
        mean, std: per channel, for pixels on a scale of 0 to 1; not used for float32.
        activation: computes the scores; see `server.engine.device.readout`.
        input_dtype: of the pixels, uint8 or float32.
        text: for zero-shot classification. The logits are then those of the default label set, and
            the features are the embedding that is compared with the labels: the network's logits.
    """

    def __init__(
        self,
        network: MergedViT,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        activation: str = "softmax",
        input_dtype: torch.dtype = torch.uint8,
        text: TextHeads | None = None,
    ) -> None:
        self.network = network
        self._text = text
        self._input_dtype = input_dtype
        self._device = device
        self._activation = activation
        # One multiply-add normalises pixels on a scale of 0 to 255.
        means = torch.tensor(mean, device=device)
        stds = torch.tensor(std, device=device)
        self._scale = 1 / (255 * stds)
        self._shift = -means / stds
        self._dtype = next(network.parameters()).dtype
        self._normalises_by_kernel = device.type == "cpu" and kernels.supports(self._dtype)
        self._pinned_memory: PinnedMemory | None = None
        self._graphs: Graphs | None = None

    def pixel_buffer(self, shape: tuple[int, int, int, int]) -> InputArray:
        """Return host memory ``(B, C, H, W)`` for the pixels of the next batch.

        On a GPU it is pinned: pixels in it need no further copy on the host.
        """
        if self._device.type != "cuda":
            return np.empty(shape, NUMPY_DTYPES[self._input_dtype])
        return self._pinned().next_buffer(shape, self._input_dtype)

    @torch.inference_mode()
    def __call__(
        self,
        pixels: InputArray,
        schedules: Sequence[Schedule],
        **options: Any,
    ) -> Outputs:
        """Return outputs that the caller may keep; the arguments are those of `run`."""
        outputs = self.run(pixels, schedules, top=0, **options).outputs
        return Outputs(outputs.logits.clone(), outputs.features.clone(), outputs.source)

    @torch.inference_mode()
    def run(
        self,
        pixels: InputArray,
        schedules: Sequence[Schedule],
        top: int,
        *,
        source: bool = False,
        float_images: FloatImages | None = None,
        label_sets: Sequence[str] = (),
    ) -> Readout:
        """Run ``pixels (B, C, H, W)``, of the input's dtype, with a schedule for each image.

        The readout is valid on the current stream, until the next call.

        Args:
            top: read out at least this many classes of each image, or all if there are fewer.
            source: return source maps too, as `MergedViT.outputs` does.
            float_images: images that replace their rows of ``pixels``, whose contents are ignored.
            label_sets: names of that of each image; empty if all images have the default.
        """
        readout = self._run(pixels, schedules, top, source, float_images)
        if self._text is None or not label_sets:
            return readout
        return self._text.read_out_each(readout.outputs, label_sets, top)

    def _run(
        self,
        pixels: InputArray,
        schedules: Sequence[Schedule],
        top: int,
        source: bool,
        float_images: FloatImages | None,
    ) -> Readout:
        """Return the readout of the default label set; the arguments are those of `run`."""
        graphs = self._graphs
        if graphs is not None and not source and float_images is None:
            match = graphs.find(schedules)
            if match is not None:
                images = len(pixels)
                self._copy_to_device(pixels, graphs.pixels[:images])
                readout = graphs.run(match, images)
                if readout.top >= top:
                    return readout
                return read_out(readout.outputs, self._activation, top)
        inputs = self._network_input(self._to_device(pixels))
        if float_images is not None:
            inputs = self._replace_rows(inputs, float_images)
        outputs = self._outputs(inputs, list(schedules), source)
        return read_out(outputs, self._activation, top)

    def _outputs(
        self,
        inputs: Tensor | Pixels,
        r: Schedule | Sequence[Schedule] | BoundedPlan,
        source: bool = False,
    ) -> Outputs:
        outputs = self.network.outputs(inputs, r=r, source=source)
        return outputs if self._text is None else self._text.compare(outputs)

    @torch.inference_mode()
    def dense(self, pixels: InputArray, schedules: Sequence[Schedule]) -> Tensor:
        """Return the features of every patch after the final norm, ``(B, patches, D)``.

        A merged token gives its features to each of its patches. The arguments are those of `run`.
        """
        inputs = self._network_input(self._to_device(pixels))
        (features,) = self.network.intermediates(inputs, r=list(schedules), layers=1, norm=True)
        return features

    @torch.inference_mode()
    def record(
        self,
        levels: Sequence[int],
        max_batch: int,
        image_shape: tuple[int, int, int],
        recorder: Recorder | None = None,
    ) -> str:
        """Record graphs for ``levels`` and batches up to ``max_batch``, and check each of them.

        Graphs are used only if all of them pass.

        Args:
            image_shape: ``(C, H, W)``.
            recorder: by default, records CUDA graphs.

        Returns:
            What is wrong with their results, or an empty string if all pass.

        Raises:
            CaptureFailed: recording or running a graph raised.
        """
        schedules = [Schedule.constant(level) for level in levels]
        shape = (max_batch, *image_shape)
        pixels = torch.zeros(shape, dtype=self._input_dtype, device=self._device)
        try:
            graphs = Graphs(
                forward=self.run_on_device,
                pixels=pixels,
                record=recorder or CudaRecorder(self._device),
                inputs=self._make_graph_inputs(pixels) if self.network.takes_bounds else None,
            )
            graphs.record(schedules)
            failure = self._check(graphs)
        except Exception as error:  # whatever it raises, the network still runs without graphs
            raise CaptureFailed(self_check.summarize_error(error)) from error
        if not failure:
            self._graphs = graphs
        return failure

    @property
    def recorded(self) -> GraphCoverage:
        """What the graphs serve; nothing before `record`, or if they failed their check."""
        graphs = self._graphs
        if graphs is None:
            return GraphCoverage(frozenset(), (), any_mix=False)
        return GraphCoverage(
            schedules=graphs.schedules,
            buckets=graphs.buckets,
            any_mix=graphs.inputs is not None,
        )

    def run_on_device(
        self,
        pixels: Tensor,
        r: Schedule | Sequence[Schedule] | BoundedPlan,
    ) -> Readout:
        """Run ``pixels`` that are on the device. This is the pass that a graph records."""
        outputs = self._outputs(self._network_input(pixels), r)
        return read_out(outputs, self._activation, RECORDED_TOP)

    def _make_graph_inputs(self, pixels: Tensor) -> GraphInputs:
        input_tokens = self.network.input_tokens(self._network_input(pixels[:1]))

        def token_counts(schedule: Schedule) -> tuple[int, ...]:
            return self.network.token_counts(schedule, input_tokens)

        return GraphInputs(token_counts, len(pixels), self._device)

    def _check(self, graphs: Graphs) -> str:
        """Compare each graph with the operators that it recorded; return what is wrong.

        The tolerance comes from running the same operators in another way: a graph pads its batch,
        and a product of other dimensions may add in another order.
        """
        _fill_with_noise(graphs.pixels)
        errors: list[float] = []
        rounding_errors: list[float] = []
        best_errors: list[float] = []
        for match, schedules in graphs.test_batches(random.Random(0)):
            pixels = graphs.pixels[: len(schedules)]
            reference = self._network_logits(self.run_on_device(pixels, schedules))
            readout = graphs.run(match, len(schedules))
            logits = self._network_logits(readout)
            errors += relative_errors([logits], [reference])
            regrouped = self._run_regrouped(pixels, schedules)
            rounding_errors += relative_errors([regrouped], [reference])
            expected = read_out(readout.outputs, self._activation, readout.top)
            best_errors += relative_errors([readout.best], [expected.best])
        resolution = torch.finfo(reference.dtype).eps
        failure = judge(errors, rounding_errors, resolution)
        return failure or judge(best_errors, [0.0], resolution)

    def _run_regrouped(
        self,
        pixels: Tensor,
        schedules: Sequence[Schedule],
    ) -> Tensor:
        """Return the logits of the same images from batches of another size.

        The batch runs in two halves. A single image runs twice in one batch.
        """
        half = len(schedules) // 2
        if half == 0:
            doubled = pixels.repeat(2, 1, 1, 1)
            return self._network_logits(self.run_on_device(doubled, [*schedules] * 2))[:1]
        first = self.run_on_device(pixels[:half], schedules[:half])
        second = self.run_on_device(pixels[half:], schedules[half:])
        return torch.cat([self._network_logits(first), self._network_logits(second)])

    def _network_logits(self, readout: Readout) -> Tensor:
        """Return the logits of the network itself: those of labels hide differences by a bias."""
        outputs = readout.outputs
        return outputs.logits if self._text is None else outputs.features

    def _network_input(self, pixels: Tensor) -> Tensor | Pixels:
        """Return the input of the network, which normalises `Pixels` itself."""
        if self._input_dtype == torch.float32:
            return pixels
        if self._normalises_by_kernel:
            return kernels.normalise(pixels, self._scale, self._shift, self._dtype)
        return Pixels(pixels, self._scale, self._shift)

    def _replace_rows(
        self,
        inputs: Tensor | Pixels,
        float_images: FloatImages,
    ) -> Tensor:
        images = normalised(inputs)
        rows = torch.tensor(float_images.rows, device=self._device)
        images[rows] = torch.from_numpy(float_images.values).to(images)
        return images

    def _to_device(self, pixels: InputArray) -> Tensor:
        if self._device.type == "cpu":
            return torch.from_numpy(pixels)
        into = torch.empty(pixels.shape, dtype=self._input_dtype, device=self._device)
        return self._copy_to_device(pixels, into)

    def _copy_to_device(
        self,
        pixels: InputArray,
        into: Tensor,
    ) -> Tensor:
        if self._device.type != "cuda":
            return into.copy_(torch.from_numpy(pixels))
        return self._pinned().copy(pixels, into)

    def _pinned(self) -> PinnedMemory:
        if self._pinned_memory is None:
            self._pinned_memory = PinnedMemory(self._device)
        return self._pinned_memory


def _fill_with_noise(pixels: Tensor) -> None:
    """Fill ``pixels`` as images are, or with noise of unit variance as spectrograms are."""
    generator = torch.Generator().manual_seed(0)
    if pixels.dtype == torch.float32:
        pixels.copy_(torch.randn(pixels.shape, generator=generator))
        return
    noise = torch.randint(
        low=0,
        high=256,
        size=pixels.shape,
        dtype=torch.uint8,
        generator=generator,
    )
    pixels.copy_(noise)
