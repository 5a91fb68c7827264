"""A frame compares two scrapes, and its quantiles are those of Prometheus."""

from __future__ import annotations

import math

import pytest
from prometheus_client import generate_latest

from server.errors import DeadlineExceeded, Overloaded, Refusal
from server.ipc.messages import BatchDone, Level
from server.metrics.api import Metrics
from server.metrics.engine import EngineMetrics
from tests.server.api.contract.models import model
from tome_core.schedule import Schedule
from tome_top.frame import compare, increase, quantile
from tome_top.scrape import Scrape

SERVED = model("m", levels=(Level("0", 197, 1.0), Level("16", 11, 0.5)))


@pytest.mark.parametrize(
    ("buckets", "percent", "value"),
    [
        ({1.0: 0, 2.0: 10, math.inf: 10}, 50, 1.5),
        ({1.0: 10, 2.0: 10, math.inf: 10}, 99, 0.99),
        ({1.0: 5, 2.0: 10, math.inf: 20}, 99, 2.0),  # in the last bucket
        ({1.0: 5, 2.0: 5, 4.0: 10, math.inf: 10}, 75, 3.0),
        ({1.0: 0, math.inf: 0}, 50, None),
        ({}, 50, None),
    ],
)
def test_quantiles_are_those_of_prometheus(
    buckets: dict[float, float], percent: float, value: float | None
) -> None:
    assert quantile(buckets, percent) == (None if value is None else pytest.approx(value))


def test_a_counter_that_was_reset_increases_by_its_value() -> None:
    before = {"a": 5, "reset": 7, "gone": 1}
    after = {"a": 9, "reset": 2, "new": 3}
    assert increase(before, after) == {"a": 4, "reset": 2, "new": 3}


def test_a_frame_has_what_happened_between_two_scrapes_of_the_server() -> None:
    metrics = Metrics()
    engine = EngineMetrics(metrics.memory, 0)
    metrics.observe_models((SERVED,))

    def read(at: float) -> Scrape:
        return Scrape.parse(generate_latest(metrics.registry).decode(), at)

    def work(images: int, model: str, r: int, forward: float, r0: float) -> None:
        engine.observe_batch(
            BatchDone(
                model,
                (),
                images=images,
                tokens=1,
                forward_seconds=forward,
                predicted_seconds=forward,
                r0_seconds=r0,
            )
        )
        for _ in range(images):
            metrics.observe_image(model, Schedule.constant(r))
            metrics.request_duration.labels("/classify", model).observe(0.15)
            metrics.requests.labels("/classify", model, "200").inc()

    work(5, "m", 0, 1.0, 1.0)
    before = read(10.0)
    work(8, "m", 16, 0.5, 1.0)
    work(2, "m", 7, 0.5, 0.6)
    metrics.observe_error(Overloaded("full", reason=Refusal.QUEUE_FULL))
    metrics.observe_error(DeadlineExceeded("late"))
    metrics.request_duration.labels("/metrics", "").observe(20)  # not a request for a model
    metrics.queue_jobs.set(3)
    frame = compare(before, read(12.0))
    assert frame.seconds == 2
    assert frame.images == {"16": 4, "other": 1}
    assert frame.codes == {"200": 5}
    assert frame.refused == {"queue-full": 0.5, "deadline missed": 0.5}
    assert frame.batch == 5
    assert frame.speedup == {"m": pytest.approx(1.6)}
    assert frame.busy == pytest.approx(0.5)
    assert frame.queue == 3
    assert frame.stages["forward"] == pytest.approx(0.5)
    assert list(frame.quantiles) == [50, 95, 99]
    assert all(0.1 < value <= 0.25 for value in frame.quantiles.values())

    idle = compare(before, before)
    assert (idle.images, idle.speedup, idle.quantiles, idle.refused) == ({}, {}, {}, {})
    assert idle.batch is None


def test_metrics_that_are_not_exported_are_missing() -> None:
    before, after = (
        Scrape.parse(f'tome_images_total{{model="m",r="0"}} {count}\n', count) for count in (1, 3)
    )
    frame = compare(before, after)
    assert (frame.images, frame.queue, frame.engines) == ({"0": 1}, None, 0)
