"""Models of video in the engine: tall pictures of uint8 from the slot to the network."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from server.catalog.entries import read_catalog
from server.engine.device.forward import Forward
from server.engine.execution.image_input import ImageInput
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import LoadedModel, load_model
from server.engine.scheduling.calibration import Calibration
from server.engine.warmup import describe_levels, level_schedules, measure_costs, model_info
from server.ipc.messages import Job
from server.ipc.shared_memory import Slots, create_memory, largest_input_bytes, size_slots
from server.media.modality import Modality
from server.media.transforms import VideoTransform
from tests.server.engine.device.fake_graphs import FakeRecorder
from tests.server.engine.loops import run_jobs
from tests.server.tiny_clip import FRAMES, SIDE, TOKENS, TUBELET, write_models
from tome_core import Schedule

pytest.importorskip("av")

CPU = torch.device("cpu")
SIZE = (3, FRAMES * SIDE, SIDE)
SCHEDULES = [Schedule.constant(0), Schedule.constant(16), Schedule.linear(8, -1)]
MEAN, STD = 0.5, 0.25


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder: Path = tmp_path_factory.mktemp("clip")
    _, spec = read_catalog(write_models(folder), ())
    return load_model(spec, CPU, torch.float32)


def clips(count: int) -> npt.NDArray[np.uint8]:
    """Noise, ``(count, C, T*H, W)``."""
    return np.random.default_rng(count).integers(0, 256, (count, *SIZE), np.uint8)


def normalised(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """As the entry of the model says."""
    return ((pixels / np.float32(255) - MEAN) / STD).astype(np.float32)


@torch.inference_mode()
def test_pixels_are_normalised_and_merge_by_schedule(model: LoadedModel) -> None:
    runner = Runner(model, CPU)
    expected = model.network(torch.from_numpy(normalised(clips(3))), r=SCHEDULES)
    found = runner.logits(clips(3), SCHEDULES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_pixel_values_run_beside_pixels(model: LoadedModel) -> None:
    runner = Runner(model, CPU)
    pixels = clips(2)
    batch = [
        ImageInput(pixels[0], SCHEDULES[1], 5),
        ImageInput(normalised(pixels[1]), SCHEDULES[1], 5),
    ]
    alone = [ImageInput(one, SCHEDULES[1], 5) for one in pixels]
    for found, expected in zip(runner.run(batch), runner.run(alone), strict=True):
        assert found.scores == pytest.approx(expected.scores, abs=1e-4)
        assert found.classes == expected.classes


def test_graphs_run_tall_pictures(model: LoadedModel) -> None:
    forward = Forward(model.network, model.mean, model.std, CPU, model.activation)
    without_graphs = forward(clips(3), [SCHEDULES[1]] * 3).logits
    recorder = FakeRecorder()
    assert forward.record((0, 16), 4, SIZE, recorder) == ""
    recorder.replayed.clear()
    logits = forward(clips(3), [SCHEDULES[1]] * 3).logits
    assert recorder.replayed == [4]
    torch.testing.assert_close(logits, without_graphs, rtol=1e-4, atol=1e-4)


def test_the_warm_up_tells_what_the_model_is(model: LoadedModel) -> None:
    runner = Runner(model, CPU)
    levels = level_schedules(runner)
    assert [str(level) for level in levels] == ["0", "1", "3", "4", "5"]  # shares of 64 tokens
    samples = measure_costs(runner, levels[:2], 2)
    assert all(sample.seconds > 0 for sample in samples)
    calibration = Calibration(model_info(runner, ()).geometry, samples)
    info = model_info(runner, describe_levels(runner, levels, calibration, 1))
    assert info.modality is Modality.VIDEO
    assert info.transform == VideoTransform(FRAMES, TUBELET, SIDE, SIDE, SIDE, stride=2)
    assert (info.tokens, info.prefix, info.r_max) == (TOKENS, 0, TOKENS // 2)
    assert info.grid == (FRAMES // TUBELET * 4, 4)
    assert info.levels[-1].relative_flops < 1
    assert largest_input_bytes([info.transform.size]) == 4 * math.prod(SIZE)


def test_the_loop_reads_pixels_and_pixel_values_from_the_slots(model: LoadedModel) -> None:
    memory = create_memory()
    size_slots(memory, 2, largest_input_bytes([SIZE]))
    slots = Slots(memory, 2, largest_input_bytes([SIZE]))
    pixels = clips(2)
    slots.view(0, SIZE, np.uint8)[:] = pixels[0]
    slots.view(1, SIZE, np.float32)[:] = normalised(pixels[1])
    runner = Runner(model, CPU)
    now = time.monotonic()
    jobs = [
        Job(slot, slot, "m", (SCHEDULES[1],), 5, now, normalised=slot == 1) for slot in range(2)
    ]
    reply = run_jobs(runner, slots, jobs)
    expected = runner.run([ImageInput(one, SCHEDULES[1], 5) for one in pixels])
    assert [one.scores for one in reply.outcomes] == [
        pytest.approx(one.scores, abs=1e-4) for one in expected
    ]
