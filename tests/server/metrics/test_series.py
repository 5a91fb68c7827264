"""Series of one process: equal to those of prometheus_client, and continued by a successor."""

from __future__ import annotations

import logging
import sys
import threading

import pytest

from server.errors import Refusal
from server.metrics import definitions
from server.metrics.collector import SharedCollector
from server.metrics.definitions import SHARED, Kind
from server.metrics.memory import REGION_BYTES
from server.metrics.regions import Region
from server.metrics.series import OTHER, SeriesWriter

LABELLED = [definition for definition in SHARED if definition.labels]


def new_region(size: int = REGION_BYTES) -> tuple[memoryview, SeriesWriter]:
    memory = memoryview(bytearray(size))
    return memory, SeriesWriter(Region(memory))


def test_a_counter_does_not_fall() -> None:
    counter = new_region()[1].counter(definitions.DEADLINE_MISSED)
    with pytest.raises(ValueError, match="cannot fall"):
        counter.inc(-1)


@pytest.mark.parametrize("labels", [(), ("/classify", "m"), ("/classify", "m", "200", "more")])
def test_every_label_has_a_value(labels: tuple[str, ...]) -> None:
    requests = new_region()[1].counters(definitions.REQUESTS)
    with pytest.raises(ValueError, match=r"has the labels \('route', 'model', 'code'\), not"):
        requests.labels(*labels)


def test_a_successor_goes_on_with_counters_and_begins_gauges_anew() -> None:
    memory, writer = new_region()
    for _ in range(2):
        writer.counters(definitions.REJECTED).labels(Refusal.QUEUE_FULL).inc(2)
        writer.histogram(definitions.BATCH_IMAGES).observe(3)
        writer.gauge(definitions.INFLIGHT_REQUESTS).inc(5)
        writer = SeriesWriter(Region(memory))
    values = {key: values.tolist() for key, values in Region(memory).entries().items()}
    assert values[("rejected_total", "queue-full")] == [4.0]
    assert values[("batch_images",)] == [0.0, 0.0, 2.0, *[0.0] * 7, 6.0]
    assert values[("inflight_requests",)] == [5.0]
    writer.gauge(definitions.INFLIGHT_REQUESTS)
    assert Region(memory).entries()[("inflight_requests",)].tolist() == [0.0]


def test_a_member_of_an_enum_is_its_value() -> None:
    memory, writer = new_region()
    rejected = writer.counters(definitions.REJECTED)
    rejected.labels(Refusal.QUEUE_FULL).inc()
    rejected.labels("queue-full").inc()
    SeriesWriter(Region(memory)).counters(definitions.REJECTED).labels(Refusal.QUEUE_FULL).inc()
    assert memory[:8].cast("Q")[0] < 100  # one entry
    assert Region(memory).entries()[("rejected_total", "queue-full")].tolist() == [3.0]


def test_a_full_region_counts_as_other_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory, writer = new_region(10_000)
    with caplog.at_level(logging.WARNING, logger="tome.metrics"):
        for number in range(500):
            for definition in LABELLED:
                labels = (str(number),) * len(definition.labels)
                if definition.kind is Kind.HISTOGRAM:
                    writer.histograms(definition).labels(*labels).observe(1)
                else:
                    writer.counters(definition).labels(*labels).inc()
    (record,) = caplog.records
    assert "counted as 'other'" in record.getMessage()
    entries = Region(memory).entries()
    for definition in LABELLED:
        of_this = {key: values for key, values in entries.items() if key[0] == definition.name}
        assert (definition.name, *(OTHER for _ in definition.labels)) in of_this
        counted = sum(sum(values.tolist()) for values in of_this.values())
        assert counted == (1000 if definition.kind is Kind.HISTOGRAM else 500)


def test_series_that_exist_stay_themselves_in_a_full_region() -> None:
    memory, writer = new_region(10_000)
    requests = writer.counters(definitions.REQUESTS)
    requests.labels("/classify", "m", "200").inc()
    for number in range(500):
        requests.labels("/", str(number), "404").inc()
    requests.labels("/classify", "m", "200").inc()
    assert SeriesWriter(Region(memory)).find(
        definitions.REQUESTS, ("/classify", "m", "200")
    ).tolist() == [2.0]
    total = next(
        family
        for family in SharedCollector([Region(memory)]).collect()
        if family.name == "tome_requests"
    )
    assert sum(sample.value for sample in total.samples) == 502


def test_threads_of_one_process_lose_no_event() -> None:
    memory, writer = new_region()
    requests = writer.counters(definitions.REQUESTS)
    durations = writer.histograms(definitions.STAGE_DURATION)

    def count() -> None:
        for number in range(10_000):
            requests.labels("/", "m", str(number % 50)).inc()
            durations.labels("decode").observe(0.25)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    entries = Region(memory).entries()
    assert sum(values[0] for key, values in entries.items() if key[0] == "requests_total") == 40_000
    decode = entries[("stage_duration_seconds", "decode")].tolist()
    assert (sum(decode[:-1]), decode[-1]) == (40_000, 10_000)
