"""Names, labels and numbers on which dashboards rely, whichever process answers."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.metrics.api import Metrics
from server.metrics.collector import SharedCollector
from server.metrics.definitions import PREFIX, SHARED, Definition, Kind
from server.metrics.engine import EngineMetrics
from server.metrics.memory import MetricsMemory
from server.metrics.parent import ParentMetrics
from server.metrics.series import SeriesWriter
from tests.server.metrics.events import happen

EXPOSITION = Path(__file__).with_name("exposition.txt")
SUMMED = tuple(definition for definition in SHARED if definition.kind is not Kind.SPEEDUP)
HISTOGRAMS = [definition for definition in SHARED if definition.kind is Kind.HISTOGRAM]


def lines(registry: CollectorRegistry) -> list[str]:
    return sorted(generate_latest(registry).decode().splitlines())


def test_families_and_samples_stay_the_same() -> None:
    metrics = Metrics()
    happen(metrics, EngineMetrics(metrics.memory, 0), ParentMetrics(metrics.memory))
    assert lines(metrics.registry) == sorted(EXPOSITION.read_text().splitlines())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_finds_no_fault() -> None:
    check = subprocess.run(
        ["promtool", "check", "metrics"],
        input=EXPOSITION.read_text(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_each_process_exports_what_all_have_counted() -> None:
    memory = MetricsMemory.create(workers=3, engines=2)
    workers = [Metrics(memory, index) for index in range(3)]
    for index, metrics in enumerate(workers):
        happen(metrics, EngineMetrics(memory, index % 2), ParentMetrics(memory))
    first = generate_latest(workers[0].registry)
    assert [generate_latest(metrics.registry) for metrics in workers] == [first] * 3
    text = first.decode()
    assert 'tome_requests_total{code="200",model="m",route="/classify"} 3.0\n' in text
    assert 'tome_stage_duration_seconds_count{stage="decode"} 3.0\n' in text
    assert "tome_batch_images_count 6.0\n" in text
    assert "tome_inflight_requests 3.0\n" in text
    assert 'tome_engine_restarts_total{engine="0"} 3.0\n' in text


def test_a_restarted_process_takes_nothing_back() -> None:
    memory = MetricsMemory.create(workers=2, engines=1)
    for _ in range(2):
        happen(Metrics(memory, 1), EngineMetrics(memory, 0), ParentMetrics(memory))
    parent = ParentMetrics(memory)
    parent.observe_worker_restart()
    text = generate_latest(Metrics(memory, 0).registry).decode()
    assert 'tome_requests_total{code="200",model="m",route="/classify"} 2.0\n' in text
    assert "tome_batch_images_count 4.0\n" in text
    assert "tome_inflight_requests 1.0\n" in text  # those of the process that has ended are gone
    assert "tome_api_worker_restarts_total 1.0\n" in text


class Oracle:
    """prometheus_client's own metrics, in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = {definition: self._create(definition) for definition in SUMMED}
        # prometheus_client exports when a series was created.
        self.created = tuple(f"{PREFIX}{d.name.removesuffix('_total')}_created" for d in SUMMED)

    def _create(self, definition: Definition) -> Counter | Gauge | Histogram:
        name, help_text = PREFIX + definition.name, definition.help_text
        labels, registry = definition.labels, self.registry
        if definition.kind is Kind.HISTOGRAM:
            buckets = definition.bounds
            return Histogram(name, help_text, labels, buckets=buckets, registry=registry)
        create = Counter if definition.kind is Kind.COUNTER else Gauge
        return create(name, help_text, labels, registry=registry)

    def add(self, definition: Definition, labels: tuple[str, ...], amount: float) -> None:
        metric = self.metrics[definition]
        if labels:
            metric = metric.labels(*labels)
        if isinstance(metric, Histogram):
            metric.observe(amount)
        elif definition.kind is Kind.COUNTER:
            metric.inc(abs(amount))
        else:
            metric.inc(amount)

    def lines(self) -> list[str]:
        text = lines(self.registry)
        return [line for line in text if not any(name in line for name in self.created)]


class Shared:
    """The same in as many regions as there are processes."""

    def __init__(self, workers: int) -> None:
        self._memory = MetricsMemory.create(workers, engines=1)
        self.registry = CollectorRegistry()
        self.registry.register(SharedCollector(self._memory.regions()))
        self._writers = [SeriesWriter(self._memory.worker(index)) for index in range(workers)]
        self.gauges: dict[tuple[int, Definition], float] = defaultdict(float)

    def replace(self, worker: int) -> None:
        again = MetricsMemory(self._memory.descriptor, len(self._writers), engines=1)
        self._writers[worker] = SeriesWriter(again.worker(worker))

    def add(
        self, worker: int, definition: Definition, labels: tuple[str, ...], amount: float
    ) -> None:
        writer = self._writers[worker]
        if definition.kind is Kind.HISTOGRAM:
            if labels:
                writer.histograms(definition).labels(*labels).observe(amount)
            else:
                writer.histogram(definition).observe(amount)
        elif labels:
            writer.counters(definition).labels(*labels).inc(abs(amount))
        elif definition.kind is Kind.COUNTER:
            writer.counter(definition).inc(abs(amount))
        else:
            gauge = writer.gauge(definition)
            gauge.set(self.gauges[worker, definition])
            gauge.dec(-amount)
            self.gauges[worker, definition] += amount

    def lines(self) -> list[str]:
        return [line for line in lines(self.registry) if "tome_speedup_ratio" not in line]


def events(
    amounts: st.SearchStrategy[float],
) -> st.SearchStrategy[list[tuple[int, int, str, float]]]:
    """Lists of (worker, definition, label, amount); a negative definition: a new process."""
    definitions = st.integers(-1, len(SUMMED) - 1)
    label = st.sampled_from(["a", "b", 'quoted "\\\n', "ünï"])
    return st.lists(st.tuples(st.integers(0, 2), definitions, label, amounts), max_size=30)


def check(workers: int, happening: list[tuple[int, int, str, float]]) -> None:
    shared, oracle = Shared(workers), Oracle()
    for worker, number, label, amount in happening:
        if number < 0:
            shared.replace(worker % workers)
            continue
        definition = SUMMED[number]
        labels = (label,) * len(definition.labels)
        shared.add(worker % workers, definition, labels, amount)
        oracle.add(definition, labels, amount)
    assert shared.lines() == oracle.lines()


# Whole multiples of an eighth: their sums do not depend on the order.
@settings(max_examples=40)
@given(events(st.integers(-800, 800).map(lambda eighths: eighths / 8)))
def test_several_processes_equal_one_registry(
    happening: list[tuple[int, int, str, float]],
) -> None:
    check(3, happening)


@settings(max_examples=40)
@given(events(st.floats(-1e9, 1e9)))
def test_one_process_equals_one_registry_for_any_numbers(
    happening: list[tuple[int, int, str, float]],
) -> None:
    check(1, happening)


@pytest.mark.parametrize("definition", HISTOGRAMS, ids=lambda definition: definition.name)
def test_a_bound_belongs_to_its_bucket(definition: Definition) -> None:
    shared, oracle = Shared(1), Oracle()
    labels = ("a",) * len(definition.labels)
    for bound in definition.bounds:
        for amount in (math.nextafter(bound, 0), float(bound), math.nextafter(bound, math.inf)):
            shared.add(0, definition, labels, amount)
            oracle.add(definition, labels, amount)
    assert shared.lines() == oracle.lines()
