"""Metrics count what the server does, under names that dashboards rely on."""

import time
from dataclasses import replace

import pytest
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from server.errors import BadImage, DeadlineExceeded, InferenceFailed, Overloaded, Refusal
from server.ipc.messages import BatchDone, BatchFailure, Failure, Level, ModelInfo, Outcome
from server.ipc.shared_memory import Heartbeat
from server.media.transforms import ImageTransform
from server.metrics import Metrics, SpeedupWindow
from tome_core.schedule import Schedule

MODEL = ModelInfo(
    name="m",
    architecture="vit",
    transform=ImageTransform((3, 32, 32), "bicubic", 1.0, "center"),
    labels=("a",),
    tokens=17,
    prefix=1,
    depth=2,
    device="cpu",
    dtype="float32",
    levels=(Level("0", 17, 1.0, accuracy=90.5), Level("4", 9, 0.6)),
    grid=(4, 4),
    acceleration="kernels",
)


@pytest.fixture
def metrics():
    return Metrics()


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"tome_{name}", labels)


def test_a_batch_is_counted(metrics):
    outcomes = (
        Outcome(1, scores=(1.0,), classes=(0,), queue_seconds=0.5),
        Outcome(2, failure=Failure.FAILED),
    )
    metrics.observe_batch(
        BatchDone("m", outcomes, 2, 394, 0.25, 0.2, 0.75, (BatchFailure.ERROR, BatchFailure.NAN))
    )
    assert value(metrics, "forward_seconds_total", model="m") == 0.25
    assert value(metrics, "r0_equivalent_seconds_total", model="m") == 0.75
    assert value(metrics, "predicted_seconds_total", model="m") == 0.2
    assert value(metrics, "prediction_error_ratio_sum", model="m") == pytest.approx(0.2)
    assert value(metrics, "speedup_ratio", model="m") == 3
    assert value(metrics, "batch_images_sum") == 2
    assert value(metrics, "batch_tokens_sum") == 394
    assert value(metrics, "stage_duration_seconds_sum", stage="queue") == 0.5
    assert value(metrics, "batch_failures_total", kind="error") == 1
    assert value(metrics, "batch_failures_total", kind="nan") == 1


def test_jobs_that_never_ran_are_no_batch(metrics):
    metrics.observe_batch(BatchDone("", (Outcome(1, Failure.EXPIRED),)))
    assert value(metrics, "batch_images_count") == 0


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
    heartbeat = Heartbeat(beat=time.monotonic() - 5, resident_bytes=1000)
    metrics.observe_engine("0", lambda: heartbeat, lambda: True)
    metrics.observe_engine("1", Heartbeat, lambda: False)
    assert value(metrics, "engine_ready", engine="0") == 1
    assert value(metrics, "engine_resident_bytes", engine="0") == 1000
    assert value(metrics, "engine_heartbeat_timestamp_seconds", engine="0") == pytest.approx(
        time.time() - 5, abs=1
    )
    for name in ("ready", "resident_bytes", "heartbeat_timestamp_seconds", "restarts_total"):
        assert value(metrics, f"engine_{name}", engine="1") == 0
    metrics.observe_restart("0")
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


def test_the_speedup_covers_the_last_minute():
    now = 1000.0
    window = SpeedupWindow(clock=lambda: now)

    def ratio():
        return {
            sample.labels["model"]: sample.value
            for family in window.collect()
            for sample in family.samples
        }

    assert ratio() == {}
    for second in range(300):
        now = 1000.0 + second
        window.add("m", 1.0, 1.0)
        window.add("m", 1.0, 3.0)
    assert ratio() == {"m": 2.0}
    now += 30
    window.add("m", 58.0, 116.0 * 2)
    assert ratio()["m"] == pytest.approx((30 * 4 + 232) / (30 * 2 + 58), rel=0.02)
    now += 61
    assert ratio() == {}


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


NAMES = {
    "requests_total": {"route", "model", "code"},
    "images_total": {"model", "r"},
    "rejected_total": {"reason"},
    "cancelled_total": {"stage"},
    "deadline_missed_total": set(),
    "batch_failures_total": {"kind"},
    "forward_seconds_total": {"model"},
    "r0_equivalent_seconds_total": {"model"},
    "predicted_seconds_total": {"model"},
    "request_duration_seconds": {"route", "model"},
    "stage_duration_seconds": {"stage"},
    "prediction_error_ratio": {"model"},
    "batch_images": set(),
    "batch_tokens": set(),
    "queue_jobs": set(),
    "inflight_requests": set(),
    "engine_heartbeat_timestamp_seconds": {"engine"},
    "engine_resident_bytes": {"engine"},
    "model_info": {"model", "architecture", "device", "dtype"},
}


def test_names_and_labels_stay_the_same(metrics):
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            name = metric._name + "_total" * isinstance(metric, Counter)
            found[name.removeprefix("tome_")] = set(metric._labelnames)
    assert {name: found.get(name) for name in NAMES} == NAMES


def test_the_help_text_defines_the_speedup():
    (family,) = SpeedupWindow().collect()
    assert (
        "tome_r0_equivalent_seconds_total over tome_forward_seconds_total" in family.documentation
    )
