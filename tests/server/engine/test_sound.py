"""Models of sound in the engine: float32 from the slot to the network, graphs included."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from server.engine.device.forward import Forward
from server.engine.execution.image_input import ImageInput
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import LoadedModel
from server.engine.scheduling.calibration import Calibration
from server.engine.warmup import describe_levels, level_schedules, measure_costs, model_info
from server.ipc.messages import Job
from server.ipc.shared_memory import Slots, create_memory, size_slots
from server.media.modality import Modality
from tests.server.engine.device.fake_graphs import FakeRecorder
from tests.server.engine.loading.tiny_sounds import AST, authors_ast, load, save_authors
from tests.server.engine.loops import run_jobs
from tome_core import Schedule

CPU = torch.device("cpu")
SIZE = (1, 128, 56)
SCHEDULES = [Schedule.constant(0), Schedule.constant(5), Schedule.linear(3, -1)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = tmp_path_factory.mktemp("ast")
    with torch.no_grad():
        return load(**AST, checkpoint=save_authors(authors_ast(), folder / "ast.pth"))


@pytest.fixture
def forward(model: LoadedModel) -> Forward:
    return Forward(model.network, (), (), CPU, model.activation, torch.float32)


def windows(count: int) -> np.ndarray:
    """Noise, float32 ``(count, C, H, W)``."""
    rng = np.random.default_rng(count)
    return 0.5 * rng.standard_normal((count, *SIZE), np.float32)


@torch.inference_mode()
def test_inputs_reach_the_network_as_they_are(model: LoadedModel) -> None:
    runner = Runner(model, CPU)
    expected = model.network(torch.from_numpy(windows(3)), r=SCHEDULES)
    torch.testing.assert_close(runner.logits(windows(3), SCHEDULES), expected)
    inputs = [ImageInput(one, r, 3) for one, r in zip(windows(3), SCHEDULES, strict=True)]
    for output, logits in zip(runner.run(inputs), expected, strict=True):
        best = logits.sigmoid().sort(descending=True)
        assert output.finite
        assert output.classes == tuple(best.indices.tolist())
        assert output.scores == pytest.approx(best.values.tolist(), abs=1e-5)


def test_a_batch_has_no_images_on_the_side(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(model, CPU)
    batch = [ImageInput(one, SCHEDULES[0], 1) for one in windows(2)]
    pixels, float_images = runner._gather(batch)
    assert pixels.dtype == np.float32
    assert float_images is None


def test_the_buffer_for_the_next_batch_is_float32(forward: Forward) -> None:
    buffer = forward.pixel_buffer((5, *SIZE))
    assert buffer.shape == (5, *SIZE)
    assert buffer.dtype == np.float32


def test_graphs_run_float32(forward: Forward) -> None:
    without_graphs = forward(windows(3), [SCHEDULES[1]] * 3).logits
    recorder = FakeRecorder()
    assert forward.record((0, 5), 4, SIZE, recorder) == ""
    recorder.replayed.clear()
    logits = forward(windows(3), [SCHEDULES[1]] * 3).logits
    assert recorder.replayed == [4]
    torch.testing.assert_close(logits, without_graphs, rtol=1e-4, atol=1e-4)


def test_graphs_that_compute_something_else_are_refused(forward: Forward) -> None:
    assert forward.record((0, 5), 4, SIZE, FakeRecorder(logits_error=0.5)).startswith("differs")
    assert forward.recorded.schedules == frozenset()


def test_the_warm_up_runs_float32(model: LoadedModel) -> None:
    runner = Runner(model, CPU)
    levels = level_schedules(runner)
    assert [str(level) for level in levels] == ["0", "1", "2", "4", "5"]  # shares of 62 tokens
    samples = measure_costs(runner, levels[:2], 2)
    assert all(sample.seconds > 0 for sample in samples)
    calibration = Calibration(model_info(runner, ()).geometry, samples)
    info = model_info(runner, describe_levels(runner, levels, calibration, 1))
    assert info.modality is Modality.AUDIO
    assert info.transform.size == SIZE
    assert info.tokens == 62
    assert info.levels[-1].relative_flops < 1


def test_the_loop_reads_float32_from_the_slots(model: LoadedModel) -> None:
    memory = create_memory()
    size_slots(memory, 2, 4 * math.prod(SIZE))
    slots = Slots(memory, 2, 4 * math.prod(SIZE))
    values = windows(2)
    for slot in range(2):
        slots.view(slot, SIZE, np.float32)[:] = values[slot]
    runner = Runner(model, CPU)
    now = time.monotonic()
    jobs = [Job(slot, slot, "m", (SCHEDULES[1],), 3, now) for slot in range(2)]
    reply = run_jobs(runner, slots, jobs)
    expected = runner.run([ImageInput(one, SCHEDULES[1], 3) for one in values])
    assert [one.scores for one in reply.outcomes] == [
        pytest.approx(one.scores, abs=1e-5) for one in expected
    ]
