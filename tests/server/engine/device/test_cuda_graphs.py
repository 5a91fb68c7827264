"""Recorded passes: which batches they serve, and that they are dropped where they are wrong.

What records here runs the operators again, on the CPU, into the same tensors: as a CUDA graph does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from server.engine.device import cuda_graphs
from server.engine.device import forward as forward_module
from server.engine.device.cuda_graphs import Graphs, buckets
from server.engine.device.forward import CaptureFailed, Floats, Forward
from server.engine.device.readout import Readout, read_out
from server.engine.loading.model_loader import LoadedModel
from tests.fake_cuda import needs_fake_cuda
from tests.server.engine.device.test_self_check import plain
from tome_core import MergedViT, Outputs, Pixels
from tome_core.optimizing import merging_for
from tome_core.pixels import Images
from tome_core.schedule import Schedule

CPU = torch.device("cpu")
SIZE = (3, 32, 32)


@dataclass
class Again:
    """Records by remembering; ``replays`` counts by batch size. ``noise`` makes what is replayed
    wrong.
    """

    noise: float = 0.0
    noise_of_best: float = 0.0
    replays: list[int] = field(default_factory=list)

    def __call__(self, run: Callable[[], Readout]) -> tuple[Readout, Callable[[], None]]:
        readout = run()

        def replay() -> None:
            again = run()
            self.replays.append(len(again.best))
            readout.outputs.logits.copy_(again.outputs.logits + self.noise)
            readout.outputs.features.copy_(again.outputs.features)
            readout.best.copy_(again.best + self.noise_of_best)

        return readout, replay


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *SIZE), np.uint8)


@pytest.fixture
def forward(tiny: LoadedModel) -> Forward:
    return Forward(tiny.network, tiny.mean, tiny.std, CPU)


def test_buckets_reach_the_largest_batch() -> None:
    assert [buckets(size) for size in (1, 2, 6, 32)] == [
        [1],
        [1, 2],
        [1, 2, 4, 6],
        [1, 2, 4, 8, 16, 32],
    ]
    assert buckets(128) == [1, 2, 4, 8, 16, 32, 48, 64, 96, 128]
    assert buckets(100) == [1, 2, 4, 8, 16, 32, 48, 64, 96, 100]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_a_batch_is_padded_up_to_its_bucket(forward: Forward, count: int) -> None:
    schedules = [Schedule.constant(4)] * count
    expected = forward(images(count), schedules)
    recorder = Again()
    assert forward.record((0, 4), 6, SIZE, recorder) == ""
    recorder.replays.clear()
    forward(images(6), [Schedule.constant(4)] * 6)  # leaves its pixels where the padding will be
    got = forward(images(count), schedules)
    assert recorder.replays == [6, {1: 1, 2: 2, 3: 4, 5: 6, 6: 6}[count]]
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.features, expected.features, rtol=1e-5, atol=1e-5)
    kept = got.logits.clone()
    forward(images(6), [Schedule.constant(4)] * 6)
    assert torch.equal(got.logits, kept)  # it is the caller's own


def test_a_graph_reads_bytes_so_batches_with_floats_do_without(forward: Forward) -> None:
    schedules = [Schedule.constant(4)] * 2
    expected = forward(images(2), schedules)
    recorder = Again()
    assert forward.record((0, 4), 4, SIZE, recorder) == ""
    recorder.replays.clear()
    mean = 0.5
    std = 0.25
    floats = Floats([1], ((images(2)[1:] / 255 - mean) / std).astype(np.float32))
    got = forward(np.stack([images(2)[0], 0 * images(2)[1]]), schedules, floats=floats)
    assert recorder.replays == []
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_what_is_not_recorded_runs_as_it_comes(forward: Forward) -> None:
    recorder = Again()
    assert forward.record((0, 4), 4, SIZE, recorder) == ""
    recorder.replays.clear()
    zero, four, five = (Schedule.constant(r) for r in (0, 4, 5))
    for schedules in ([zero, four], [five], [four] * 5):
        logits = forward(images(len(schedules)), schedules).logits
        assert logits.shape == (len(schedules), 3)
    assert forward(images(2), [four] * 2, source=True).source is not None
    assert not recorder.replays


@pytest.mark.parametrize("recorder", [Again(1.0), Again(float("nan")), Again(noise_of_best=0.5)])
def test_wrong_graphs_are_dropped(forward: Forward, recorder: Again) -> None:
    assert "differs by" in forward.record((0, 4), 4, SIZE, recorder)
    recorder.replays.clear()
    assert forward(images(2), [Schedule.constant(4)] * 2).logits.isfinite().all()
    assert not recorder.replays


def test_a_recorder_that_fails_leaves_the_operators(forward: Forward) -> None:
    def fails(run: Callable[[], Readout]) -> tuple[Readout, Callable[[], None]]:
        run()
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(
        CaptureFailed, match="raised RuntimeError: operation not permitted when stream is capturing"
    ):
        forward.record((0, 4), 4, SIZE, fails)
    assert forward(images(2), [Schedule.constant(4)] * 2).logits.shape == (2, 3)


def test_their_number_is_bounded_and_small_batches_come_first(
    forward: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 3)
    recorded = Graphs(forward.recordable, torch.zeros(4, *SIZE, dtype=torch.uint8), Again())
    with torch.inference_mode():
        recorded.record([Schedule.constant(0), Schedule.constant(4)])
    # In the order of recording: the largest first.
    assert [(str(graph.schedule), len(graph.pixels)) for graph in recorded] == [
        ("0", 2),
        ("4", 1),
        ("0", 1),
    ]
    assert len(recorded) == 3
    assert recorded.find([Schedule.constant(4)] * 2) is None


class Uniform(torch.nn.Module):
    """What a graph records, as a module, whose weights can be swapped for fake ones."""

    def __init__(self, network: MergedViT) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor, r: int) -> Readout:
        forward = Forward(self.network, (0.5,) * 3, (0.25,) * 3, torch.device("cuda"))
        return forward.recordable(pixels, Schedule.constant(r))


@needs_fake_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_what_a_graph_records_never_waits_for_the_device(
    tiny_folder: Path, dtype: torch.dtype
) -> None:
    """On fake CUDA tensors, with normalisation: the right device and dtype, and no value is read
    back.
    """
    network = plain(tiny_folder)
    network.merging = merging_for(network.merging, "cuda", dtype)
    uniform = Uniform(network)
    with FakeTensorMode(), torch.inference_mode():
        weights = {
            name: torch.empty(tensor.shape, dtype=dtype, device="cuda")
            for name, tensor in uniform.named_parameters()
        }
        for r in range(9):
            pixels = torch.empty(4, *SIZE, dtype=torch.uint8, device="cuda")
            readout = functional_call(uniform, weights, (pixels, r))
            logits = readout.outputs.logits
            best = readout.best
            assert (logits.device.type, logits.dtype, logits.shape) == ("cuda", dtype, (4, 3))
            assert (best.device.type, best.dtype, best.shape) == (
                "cuda",
                torch.float32,
                (4, 2 * 3 + 1),
            )


@dataclass
class Keeping:
    """An embedding that takes anything, and keeps it."""

    tokens: int
    width: int
    kept: list[Images] = field(default_factory=list)

    def takes(self, images: Images) -> bool:
        return True

    def __call__(self, images: Images) -> torch.Tensor:
        self.kept.append(images)
        return torch.empty(len(images), self.tokens, self.width, device="cuda")


@needs_fake_cuda
def test_on_a_gpu_the_network_normalises(tiny_folder: Path) -> None:
    network = plain(tiny_folder)
    _, tokens, width = network.adapter.embed(torch.zeros(1, *SIZE))[0].shape
    network.embedding = embedding = Keeping(tokens, width)
    uniform = Uniform(network)
    with FakeTensorMode(), torch.inference_mode():
        weights = {
            name: torch.empty(tensor.shape, device="cuda")
            for name, tensor in uniform.named_parameters()
        }
        pixels = torch.empty(4, *SIZE, dtype=torch.uint8, device="cuda")
        functional_call(uniform, weights, (pixels, 3))
    (given,) = embedding.kept
    assert isinstance(given, Pixels) and given.values is pixels


def test_more_classes_than_a_graph_reads_out_are_read_from_its_logits(
    forward: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "RECORDED_TOP", 1)
    schedules = [Schedule.constant(4)] * 3
    expected = forward.read(images(3), schedules, 3).best.clone()
    recorder = Again()
    assert forward.record((0, 4), 4, SIZE, recorder) == ""
    recorder.replays.clear()
    assert forward.read(images(3), schedules, 1).best.shape == (3, 3)
    torch.testing.assert_close(
        forward.read(images(3), schedules, 3).best, expected, rtol=1e-5, atol=1e-5
    )
    assert recorder.replays == [4, 4]
    assert forward.recorded == (
        frozenset({Schedule.constant(0), Schedule.constant(4)}),
        (1, 2, 4),
        False,
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_the_best_classes_and_whether_all_is_finite(activation: str) -> None:
    logits = torch.tensor([[0.5, 2.0, -1.0, 1.0], [3.0, float("nan"), 0.0, 1.0]])
    features = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    best = read_out(Outputs(logits, features, None), activation, 2).best
    expected = {"softmax": logits.softmax(-1), "sigmoid": logits.sigmoid(), "none": logits}[
        activation
    ][0, [1, 3]]
    torch.testing.assert_close(best[0, :2], expected)
    assert best[0, 2:].tolist() == [1, 3, 1] and best[1, -1] == 0
    features[0, 1] = float("inf")
    assert read_out(Outputs(logits, features, None), activation, 9).best[:, -1].tolist() == [0, 0]
