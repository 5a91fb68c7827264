"""Recorded passes: which batches they serve, and that they are dropped if they are wrong.

A fake recorder runs the operators again on the CPU. What only a CUDA graph does is tested in
`tests/cuda`.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from server.engine.device import cuda_graphs
from server.engine.device import forward as forward_module
from server.engine.device.cuda_graphs import Graphs, buckets, without_garbage_collection
from server.engine.device.forward import CaptureFailed, FloatImages, Forward
from server.engine.device.readout import Readout
from server.engine.loading.model_loader import LoadedModel
from tests.fake_cuda import needs_fake_cuda
from tests.server.engine.device.fake_graphs import CPU, IMAGE_SHAPE, FakeRecorder, random_pixels
from tests.server.engine.device.plain_network import load_plain
from tome_core import MergedViT, Pixels
from tome_core.optimizing import execution_for
from tome_core.pixels import Images
from tome_core.schedule import Schedule

R0 = Schedule.constant(0)
R4 = Schedule.constant(4)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def record(forward: Forward, max_batch: int) -> FakeRecorder:
    """Record r=0 and r=4, which must pass, and forget the replays of the check."""
    recorder = FakeRecorder()
    assert forward.record((0, 4), max_batch, IMAGE_SHAPE, recorder) == ""
    recorder.replayed.clear()
    return recorder


@pytest.fixture
def forward(tiny: LoadedModel) -> Forward:
    return Forward(tiny.network, tiny.mean, tiny.std, CPU)


def set_enabled(is_enabled: bool) -> None:
    if is_enabled:
        gc.enable()
    else:
        gc.disable()


@pytest.mark.parametrize("was_enabled", [True, False])
def test_nothing_is_collected_while_a_graph_is_recorded(was_enabled: bool) -> None:
    """Otherwise CUDA ends the recording if the collector destroys another graph."""
    is_enabled = gc.isenabled()
    set_enabled(was_enabled)
    try:
        with pytest.raises(ValueError, match="stop"), without_garbage_collection():
            assert not gc.isenabled()
            raise ValueError("stop")
        assert gc.isenabled() == was_enabled
    finally:
        set_enabled(is_enabled)


def test_buckets_reach_the_largest_batch() -> None:
    assert buckets(1) == [1]
    assert buckets(2) == [1, 2]
    assert buckets(6) == [1, 2, 4, 6]
    assert buckets(32) == [1, 2, 4, 8, 16, 32]
    assert buckets(100) == [1, 2, 4, 8, 16, 32, 48, 64, 96, 100]
    assert buckets(128) == [1, 2, 4, 8, 16, 32, 48, 64, 96, 128]


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 6), (6, 6)])
def test_a_batch_is_padded_to_its_bucket(
    forward: Forward,
    count: int,
    bucket: int,
) -> None:
    schedules = [R4] * count
    expected = forward(random_pixels(count), schedules)
    recorder = record(forward, max_batch=6)
    # A full batch leaves its pixels where the padding of the next one will be.
    forward(random_pixels(6), [R4] * 6)
    outputs = forward(random_pixels(count), schedules)
    assert recorder.replayed == [6, bucket]
    assert_close(outputs.logits, expected.logits)
    assert_close(outputs.features, expected.features)


def test_outputs_survive_the_next_replay(forward: Forward) -> None:
    record(forward, max_batch=6)
    outputs = forward(random_pixels(3), [R4] * 3)
    copy = outputs.logits.clone()
    forward(random_pixels(6), [R4] * 6)
    assert torch.equal(outputs.logits, copy)


def test_a_batch_with_floats_runs_without_a_graph(forward: Forward) -> None:
    """A graph reads bytes."""
    schedules = [R4] * 2
    pixels = random_pixels(2)
    expected = forward(pixels, schedules)
    recorder = record(forward, max_batch=4)
    mean = 0.5
    std = 0.25
    second = (pixels[1:] / 255 - mean) / std
    float_images = FloatImages([1], second.astype(np.float32))
    pixels[1] = 0
    outputs = forward(pixels, schedules, float_images=float_images)
    assert recorder.replayed == []
    assert_close(outputs.logits, expected.logits)


def test_a_batch_without_a_graph_runs_operator_by_operator(forward: Forward) -> None:
    recorder = record(forward, max_batch=4)
    mixed = [R0, R4]
    not_recorded = [Schedule.constant(5)]
    too_large = [R4] * 5
    for schedules in (mixed, not_recorded, too_large):
        count = len(schedules)
        logits = forward(random_pixels(count), schedules).logits
        assert logits.shape == (count, 3)
    with_source = forward(random_pixels(2), [R4] * 2, source=True)
    assert with_source.source is not None
    assert not recorder.replayed


@pytest.mark.parametrize(
    "recorder",
    [
        FakeRecorder(logits_error=1.0),
        FakeRecorder(logits_error=float("nan")),
        FakeRecorder(best_error=0.5),
    ],
)
def test_wrong_graphs_are_dropped(
    forward: Forward,
    recorder: FakeRecorder,
) -> None:
    failure = forward.record((0, 4), 4, IMAGE_SHAPE, recorder)
    assert "differs by" in failure
    recorder.replayed.clear()
    logits = forward(random_pixels(2), [R4] * 2).logits
    assert logits.isfinite().all()
    assert not recorder.replayed


def test_a_recorder_that_fails_leaves_the_operators(forward: Forward) -> None:
    message = "operation not permitted when stream is capturing"

    def fail(run: Callable[[], Readout]) -> tuple[Readout, Callable[[], None]]:
        run()
        raise RuntimeError(message)

    with pytest.raises(CaptureFailed, match=f"raised RuntimeError: {message}"):
        forward.record((0, 4), 4, IMAGE_SHAPE, fail)
    logits = forward(random_pixels(2), [R4] * 2).logits
    assert logits.shape == (2, 3)


def test_the_number_of_graphs_is_bounded_and_small_batches_have_priority(
    forward: Forward,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 3)
    pixels = torch.zeros(4, *IMAGE_SHAPE, dtype=torch.uint8)
    graphs = Graphs(forward.run_on_device, pixels, FakeRecorder())
    with torch.inference_mode():
        graphs.record([R0, R4])
    # In the order of recording: the largest first.
    assert [(graph.schedule, graph.bucket) for graph in graphs] == [(R0, 2), (R4, 1), (R0, 1)]
    assert len(graphs) == 3
    assert graphs.find([R4] * 2) is None


class RecordedPass(torch.nn.Module):
    """What a graph records, as a module, so that fake weights can replace its weights."""

    def __init__(self, network: MergedViT) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, r: int) -> Readout:
        mean = (0.5,) * 3
        std = (0.25,) * 3
        forward = Forward(self.network, mean, std, torch.device("cuda"))
        return forward.run_on_device(pixels, Schedule.constant(r))


def fake_weights(
    module: torch.nn.Module,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    weights = {}
    for name, tensor in module.named_parameters():
        weights[name] = torch.empty(tensor.shape, dtype=dtype, device="cuda")
    return weights


@needs_fake_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_what_a_graph_records_never_waits_for_the_device(
    tiny_folder: Path,
    dtype: torch.dtype,
) -> None:
    """Fake CUDA tensors have no values: reading one back on the host would raise."""
    network = load_plain(tiny_folder)
    network.execution = execution_for("cuda", dtype)
    recorded_pass = RecordedPass(network)
    with FakeTensorMode(), torch.inference_mode():
        weights = fake_weights(recorded_pass, dtype)
        for r in range(9):
            pixels = torch.empty(4, *IMAGE_SHAPE, dtype=torch.uint8, device="cuda")
            readout = functional_call(recorded_pass, weights, (pixels, r))
            logits = readout.outputs.logits
            assert logits.device.type == "cuda"
            assert logits.dtype == dtype
            assert logits.shape == (4, 3)
            best = readout.best
            assert best.device.type == "cuda"
            assert best.dtype == torch.float32
            assert best.shape == (4, 2 * 3 + 1)


@dataclass
class FakeEmbedding:
    """An embedding that takes any images, and stores them."""

    tokens: int
    width: int
    received: list[Images] = field(default_factory=list)

    def supports(self, images: Images) -> bool:
        return True

    def __call__(self, images: Images) -> Tensor:
        self.received.append(images)
        return torch.empty(len(images), self.tokens, self.width, device="cuda")


@needs_fake_cuda
def test_on_a_gpu_the_network_normalises(tiny_folder: Path) -> None:
    network = load_plain(tiny_folder)
    blank = torch.zeros(1, *IMAGE_SHAPE)
    _, tokens, width = network.adapter.embed(blank)[0].shape
    embedding = FakeEmbedding(tokens, width)
    network.embedding = embedding
    recorded_pass = RecordedPass(network)
    with FakeTensorMode(), torch.inference_mode():
        weights = fake_weights(recorded_pass, torch.float32)
        pixels = torch.empty(4, *IMAGE_SHAPE, dtype=torch.uint8, device="cuda")
        functional_call(recorded_pass, weights, (pixels, 3))
    (images,) = embedding.received
    assert isinstance(images, Pixels)
    assert images.values is pixels


def test_more_classes_than_a_graph_reads_out_are_read_from_its_logits(
    forward: Forward,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forward_module, "RECORDED_TOP", 1)
    schedules = [R4] * 3
    pixels = random_pixels(3)
    expected = forward.run(pixels, schedules, top=3).best.clone()
    recorder = record(forward, max_batch=4)
    assert forward.run(pixels, schedules, top=1).best.shape == (3, 2 * 1 + 1)
    assert_close(forward.run(pixels, schedules, top=3).best, expected)
    assert recorder.replayed == [4, 4]
    assert forward.recorded == (frozenset({R0, R4}), (1, 2, 4), False)
