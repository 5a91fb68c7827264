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

from server.engine import graphs
from server.engine.forward import Floats, Forward
from server.engine.graphs import Graphs, buckets
from server.engine.loading import LoadedModel
from tests.server.engine.test_proving import plain
from tome_core import Outputs
from tome_core.optimizing import merging_for
from tome_core.schedule import Schedule

CPU = torch.device("cpu")
SIZE = (3, 32, 32)


@dataclass
class Again:
    """Records by remembering; ``replays`` counts by batch size. ``noise`` makes what is replayed wrong."""

    noise: float = 0.0
    replays: list[int] = field(default_factory=list)

    def __call__(self, run: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        outputs = run()

        def replay() -> None:
            again = run()
            self.replays.append(len(again.logits))
            outputs.logits.copy_(again.logits + self.noise)
            outputs.features.copy_(again.features)

        return outputs, replay


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *SIZE), np.uint8)


@pytest.fixture
def forward(tiny: LoadedModel) -> Forward:
    return Forward(tiny.network, tiny.mean, tiny.std, CPU)


def test_buckets_reach_the_largest_batch() -> None:
    assert [buckets(size) for size in (1, 2, 6, 32)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16, 32]]


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
    mean, std = 0.5, 0.25
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


@pytest.mark.parametrize("noise", [1.0, float("nan")])
def test_wrong_graphs_are_dropped(forward: Forward, noise: float) -> None:
    recorder = Again(noise)
    assert "differs by" in forward.record((0, 4), 4, SIZE, recorder)
    recorder.replays.clear()
    assert forward(images(2), [Schedule.constant(4)] * 2).logits.isfinite().all()
    assert not recorder.replays


def test_a_recorder_that_fails_leaves_the_operators(forward: Forward) -> None:
    def fails(run: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        run()
        raise RuntimeError("operation not permitted when stream is capturing")

    reason = forward.record((0, 4), 4, SIZE, fails)
    assert reason == "raised RuntimeError: operation not permitted when stream is capturing"
    assert forward(images(2), [Schedule.constant(4)] * 2).logits.shape == (2, 3)


def test_their_number_is_bounded_and_small_batches_come_first(
    forward: Forward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 3)
    recorded = Graphs(forward.uniform, torch.zeros(4, *SIZE, dtype=torch.uint8), Again())
    with torch.inference_mode():
        recorded.record([Schedule.constant(0), Schedule.constant(4)])
    # In the order of recording: the largest first.
    assert [(str(schedule), len(graph.pixels)) for schedule, graph in recorded.items()] == [
        ("0", 2),
        ("4", 1),
        ("0", 1),
    ]
    assert len(recorded) == 3
    assert recorded.find([Schedule.constant(4)] * 2) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_what_a_graph_records_never_waits_for_the_device(tiny_folder: Path, dtype: torch.dtype) -> None:
    """On fake CUDA tensors, with normalisation: the right device and dtype, and no value is read back."""
    network = plain(tiny_folder)
    network.merging = merging_for(network.merging, "cuda", dtype, flash=True)

    class Uniform(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor, r: int) -> Outputs:
            forward = Forward(network, (0.5,) * 3, (0.25,) * 3, torch.device("cuda"))
            return forward.uniform(pixels, Schedule.constant(r))

    with FakeTensorMode(), torch.inference_mode():
        weights = {
            name: torch.empty(tensor.shape, dtype=dtype, device="cuda") for name, tensor in Uniform().named_parameters()
        }
        for r in range(9):
            pixels = torch.empty(4, *SIZE, dtype=torch.uint8, device="cuda")
            outputs = functional_call(Uniform(), weights, (pixels, r))
            assert (outputs.logits.device.type, outputs.logits.dtype) == ("cuda", dtype)
            assert outputs.logits.shape == (4, 3)
