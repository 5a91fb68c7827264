"""An engine counts its batches where API processes find them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from server.ipc.messages import BatchDone, Failure, Outcome
from server.metrics.api import Metrics
from server.metrics.engine import EngineMetrics
from server.metrics.memory import MetricsMemory
from tests.server.conftest import ROOT
from tests.server.metrics.events import BATCH


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"tome_{name}", labels)


def test_batches_of_all_engines_are_counted() -> None:
    memory = MetricsMemory.create(workers=1, engines=2)
    metrics = Metrics(memory)
    for engine in range(2):
        EngineMetrics(memory, engine).observe_batch(BATCH)
    assert value(metrics, "forward_seconds_total", model="m") == 0.5
    assert value(metrics, "r0_equivalent_seconds_total", model="m") == 1.5
    assert value(metrics, "predicted_seconds_total", model="m") == 0.4
    assert value(metrics, "prediction_error_ratio_sum", model="m") == pytest.approx(0.4)
    assert value(metrics, "speedup_ratio", model="m") == 3
    assert value(metrics, "batch_images_sum") == 4
    assert value(metrics, "batch_tokens_sum") == 788
    assert value(metrics, "stage_duration_seconds_sum", stage="queue") == 1.0
    assert value(metrics, "batch_failures_total", kind="error") == 2
    assert value(metrics, "batch_failures_total", kind="nan") == 2


def test_jobs_that_never_ran_are_no_batch() -> None:
    metrics = Metrics()
    EngineMetrics(metrics.memory, 0).observe_batch(BatchDone("", (Outcome(1, Failure.EXPIRED),)))
    assert value(metrics, "batch_images_count") == 0


def test_a_batch_that_ran_again_in_parts_tells_nothing_of_speed() -> None:
    metrics = Metrics()
    EngineMetrics(metrics.memory, 0).observe_batch(
        replace(BATCH, predicted_seconds=0.0, r0_seconds=0.0)
    )
    assert value(metrics, "batch_images_count") == 1
    assert value(metrics, "forward_seconds_total", model="m") is None
    assert value(metrics, "prediction_error_ratio_count", model="m") is None


def test_a_batch_of_second_passes_takes_time_that_r0_would_not() -> None:
    metrics = Metrics()
    engine = EngineMetrics(metrics.memory, 0)
    engine.observe_batch(BATCH)
    engine.observe_batch(replace(BATCH, r0_seconds=0.0))
    assert value(metrics, "forward_seconds_total", model="m") == 0.5
    assert value(metrics, "r0_equivalent_seconds_total", model="m") == 0.75
    assert value(metrics, "speedup_ratio", model="m") == 1.5


def test_neither_engine_nor_parent_imports_what_exports() -> None:
    code = (
        "import server.metrics.engine, server.metrics.parent, sys;"
        " sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
