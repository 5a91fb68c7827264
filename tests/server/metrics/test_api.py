"""An API process counts what it does, and exports what it knows."""

import time
from dataclasses import replace

import pytest

from server.errors import BadImage, DeadlineExceeded, InferenceFailed, Overloaded, Refusal
from server.ipc.board import Board, BoardSize
from server.ipc.messages import Level
from server.metrics.api import Metrics
from server.metrics.parent import ParentMetrics
from tests.server.metrics import events
from tome_core.schedule import Schedule

MODEL = replace(events.MODEL, dtype_speedup=None)


@pytest.fixture
def metrics():
    return Metrics()


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"tome_{name}", labels)


def test_after_a_restart_with_fewer_accelerations_only_those_are_exported(metrics):
    metrics.observe_models((MODEL,))
    assert value(metrics, "acceleration_info", model="m", kind="kernels") == 1
    metrics.observe_models((replace(MODEL, acceleration="reference"),))
    assert value(metrics, "acceleration_info", model="m", kind="reference") == 1
    assert value(metrics, "acceleration_info", model="m", kind="kernels") is None


def test_the_speed_of_a_dtype_is_exported_if_it_was_timed(metrics):
    metrics.observe_models((replace(MODEL, dtype_speedup=1.5),))
    assert value(metrics, "dtype_speedup", model="m", dtype="float32") == 1.5
    metrics.observe_models((MODEL,))
    assert value(metrics, "dtype_speedup", model="m", dtype="float32") is None


def test_the_state_of_each_engine_is_exported(metrics):
    rows = Board.create(BoardSize(engines=2, workers=1, slots=1)).engines
    before = time.time()
    rows[0].beat(time.monotonic() - 5, resident_bytes=1000)
    after = time.time()
    rows[0].set_ready(True)
    metrics.observe_engine("0", rows[0])
    metrics.observe_engine("1", rows[1])
    assert value(metrics, "engine_ready", engine="0") == 1
    assert value(metrics, "engine_resident_bytes", engine="0") == 1000
    beat = value(metrics, "engine_heartbeat_timestamp_seconds", engine="0")
    assert before - 6 < beat < after - 4
    for name in ("ready", "resident_bytes", "heartbeat_timestamp_seconds", "restarts_total"):
        assert value(metrics, f"engine_{name}", engine="1") == 0
    ParentMetrics(metrics.memory).observe_restart("0")
    assert value(metrics, "engine_restarts_total", engine="0") == 1


def test_images_are_counted_by_level_of_their_model(metrics):
    other = replace(MODEL, name="n", levels=(Level("7", 10, 0.5),))
    metrics.observe_models((MODEL, other))
    for r in ("4", "4", "8:1", "7", "4,"):
        metrics.observe_image("m", Schedule.parse(r))
    metrics.observe_image("n", Schedule.parse("7"))
    assert value(metrics, "images_total", model="m", r="4") == 2
    assert value(metrics, "images_total", model="m", r="other") == 3
    assert value(metrics, "images_total", model="n", r="7") == 1


def test_lost_workers_are_counted_by_reason(metrics):
    metrics.observe_lost_worker("timeout")
    assert value(metrics, "decode_workers_lost_total", reason="timeout") == 1


def test_errors_are_counted_by_reason(metrics):
    for error in (
        BadImage(""),
        Overloaded("", reason=Refusal.QUEUE_FULL),
        DeadlineExceeded(""),
        InferenceFailed(""),
    ):
        metrics.observe_error(error)
    for reason in ("bad-image", "queue-full"):
        assert value(metrics, "rejected_total", reason=reason) == 1
    assert value(metrics, "rejected_total", reason="inference-failed") is None
    assert value(metrics, "deadline_missed_total") == 1


def test_served_models_are_exported(metrics):
    metrics.observe_models((MODEL,))
    assert (
        value(metrics, "model_info", model="m", architecture="vit", device="cpu", dtype="float32")
        == 1
    )
    assert value(metrics, "acceleration_info", model="m", kind="kernels") == 1
    assert value(metrics, "forward_seconds_total", model="m") == 0
    assert value(metrics, "level_accuracy", model="m", r="0") == 0.905
    assert value(metrics, "level_accuracy", model="m", r="4") is None
