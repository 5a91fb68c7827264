"""Startup: models that accept jobs, and recordings of CUDA graphs that fail."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from server.engine.device.forward import CaptureFailed
from server.engine.execution.runner import Runner
from server.engine.loop import EngineModel
from server.engine.startup import record_graphs, start_models
from server.errors import UnsafeAcceleration
from server.ipc.messages import Accelerations
from tests.server.engine.processes import configuration
from tests.tome_core.backends.cpu.helpers import HAS_AVX512
from tome_core.backends.cpu import library
from tome_core.schedule import Schedule


def test_every_model_is_measured_and_calibrated_before_it_accepts_jobs(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tome.engine"):
        served, (info,) = start_models(configuration(tiny_folder, levels=(0, 4, 99)))
    records = [record for record in caplog.records if record.name == "tome.engine"]
    steps = [record.getMessage() for record in records if "seconds" not in vars(record)]
    assert [step.removeprefix("tiny: ").split()[0] for step in steps] == [
        "opening",
        "loading",
        "optimising",
        "calibrating",
        "tiny",  # is ready
    ]
    done = [record.getMessage() for record in records if "seconds" in vars(record)]
    assert [line.rpartition(": done in ")[0] for line in done] == steps[:-1]
    assert info.name == "tiny"
    assert [level.r for level in info.levels] == ["0", "4"]  # 99 is more than the tokens allow
    assert info.levels[0].speedup == 1
    model = served["tiny"]
    assert isinstance(model, EngineModel)
    assert model.runner.acceleration == info.acceleration
    one, four = (model.calibration.predict([Schedule.constant(0)] * size) for size in (1, 4))
    # Coefficients are not negative; those of a disturbed warm-up may be 0 for all but the batch.
    assert 0 < one <= four


@pytest.mark.parametrize("isa", ["avx512", "none"])
def test_the_instruction_set_of_the_configuration_is_used(
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    isa: str,
) -> None:
    monkeypatch.setattr(library, "_limit", None)  # is as before after the test
    _, (info,) = start_models(configuration(tiny_folder, cpu_isa=isa))
    runs_kernels = isa != "none" and HAS_AVX512
    assert info.acceleration == ("kernels" if runs_kernels else "operators")


def test_a_failed_recording_asks_for_a_new_process_without_graphs(
    tiny_folder: Path,
    runner: Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(max_batch: object) -> None:
        raise CaptureFailed("raised RuntimeError: injected")

    monkeypatch.setattr(runner, "record_graphs", fail)
    with pytest.raises(UnsafeAcceleration) as caught:
        record_graphs(runner, configuration(tiny_folder))
    assert str(caught.value) == "model tiny: recording CUDA graphs raised RuntimeError: injected"
    assert caught.value.safer == Accelerations(graphs=False)
