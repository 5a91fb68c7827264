"""Metrics for Prometheus.

Only the API process has a registry. The engine's numbers arrive in the reply to each batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server.decoding.process import Loss
from server.errors import DeadlineExceeded, Refusal, RequestError
from server.ipc.messages import BatchDone, BatchFailure, ModelInfo
from server.ipc.shared_memory import Heartbeat
from tome_core.schedule import Schedule

SPEEDUP_WINDOW = 60  # seconds

# Upper bounds of buckets.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = tuple(2**power for power in range(7, 18))
_ERRORS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0, 2.0)

# Label values that are known in advance, as those of `Refusal` and `Loss` are.
_CANCELLED_STAGES = ("body", "decode", "queue", "picture")

# Do not export when each counter was created: nobody uses it, and it doubles the series.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class _SecondOfWork(NamedTuple):
    """Device time of the batches that ended in one second, and their time at r=0."""

    second: int
    forward: float
    r0_equivalent: float


class SpeedupWindow(Collector):
    """Exports ``tome_speedup_ratio``, the speed-up of merging over the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # One entry per second, so that memory is bounded at any rate.
        self._work: dict[str, deque[_SecondOfWork]] = {}

    def add(self, model: str, forward: float, r0_equivalent: float) -> None:
        """Count a batch of ``forward`` seconds that would have taken ``r0_equivalent`` at r=0."""
        now = int(self._clock())
        work = self._work.setdefault(model, deque(maxlen=SPEEDUP_WINDOW))
        if work and work[-1].second == now:
            earlier = work.pop()
            forward += earlier.forward
            r0_equivalent += earlier.r0_equivalent
        work.append(_SecondOfWork(now, forward, r0_equivalent))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield one sample for each model that ran within the window."""
        family = GaugeMetricFamily(
            "tome_speedup_ratio",
            "tome_r0_equivalent_seconds_total over tome_forward_seconds_total, both over the last"
            " minute: how many times as long its batches would have taken at r=0. No sample for a"
            " model that ran no batch in that minute.",
            labels=["model"],
        )
        start = self._clock() - SPEEDUP_WINDOW
        for model, work in self._work.items():
            recent = [entry for entry in work if entry.second > start]
            forward = sum(entry.forward for entry in recent)
            r0_equivalent = sum(entry.r0_equivalent for entry in recent)
            if forward > 0:
                family.add_metric([model], r0_equivalent / forward)
        yield family


class _Factory:
    """Creates metrics of the prefix ``tome_`` in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"tome_{name}", help_text, labels, registry=self._registry)

    def gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"tome_{name}", help_text, labels, registry=self._registry)

    def histogram(
        self,
        name: str,
        help_text: str,
        buckets: tuple[float, ...],
        *labels: str,
    ) -> Histogram:
        return Histogram(
            f"tome_{name}",
            help_text,
            labels,
            buckets=buckets,
            registry=self._registry,
        )


class Metrics:
    """All metrics of the server, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        # By model: values of ``r`` with a label of their own; all others are ``other``.
        self._levels: dict[str, set[str]] = {}
        factory = _Factory(self.registry)
        self._create_request_metrics(factory)
        self._create_duration_metrics(factory)
        self._create_batch_metrics(factory)
        self._create_engine_metrics(factory)
        self._create_decoder_metrics(factory)
        self._create_model_metrics(factory)
        self._create_known_series()
        self._speedup = SpeedupWindow()
        self.registry.register(self._speedup)

    def _create_request_metrics(self, factory: _Factory) -> None:
        self.requests = factory.counter(
            "requests_total",
            "Requests answered; code 499 if the client disconnected first.",
            "route",
            "model",
            "code",
        )
        self.images = factory.counter(
            "images_total",
            "Images answered, by level of r of the model; so is each window of a sound or video.",
            "model",
            "r",
        )
        self.rejected = factory.counter(
            "rejected_total",
            "Requests and files refused, by reason.",
            "reason",
        )
        self.cancelled = factory.counter(
            "cancelled_total",
            "Requests whose client disconnected, by stage.",
            "stage",
        )
        self.deadline_missed = factory.counter(
            "deadline_missed_total",
            "Images, or whole multipart requests, that missed their deadline.",
        )
        self.inflight_requests = factory.gauge("inflight_requests", "Requests in flight.")

    def _create_duration_metrics(self, factory: _Factory) -> None:
        self.request_duration = factory.histogram(
            "request_duration_seconds",
            "Time from the headers of a request to its answer.",
            _SECONDS,
            "route",
            "model",
        )
        self.stage_duration = factory.histogram(
            "stage_duration_seconds",
            "Time of each stage of an input: body, decode, queue, forward, picture.",
            _SECONDS,
            "stage",
        )

    def _create_batch_metrics(self, factory: _Factory) -> None:
        self.batch_failures = factory.counter(
            "batch_failures_total",
            "Batches in which the model failed.",
            "kind",
        )
        self.forward_seconds = factory.counter(
            "forward_seconds_total",
            "Device time of forward passes, without those that failed and ran again.",
            "model",
        )
        self.r0_seconds = factory.counter(
            "r0_equivalent_seconds_total",
            "Estimated device time of the same images at r=0: the forward time, scaled by the ratio"
            " of the cost model's predictions at r=0 and at the r that ran.",
            "model",
        )
        self.predicted_seconds = factory.counter(
            "predicted_seconds_total",
            "Predicted device time of the batches in forward_seconds_total.",
            "model",
        )
        self.prediction_error = factory.histogram(
            "prediction_error_ratio",
            "Relative error of the predicted device time of a batch.",
            _ERRORS,
            "model",
        )
        self.batch_images = factory.histogram("batch_images", "Images per batch.", _IMAGES)
        self.batch_tokens = factory.histogram("batch_tokens", "Input tokens per batch.", _TOKENS)
        self.queue_jobs = factory.gauge(
            "queue_jobs", "Images that the engines have not answered yet."
        )

    def _create_engine_metrics(self, factory: _Factory) -> None:
        self.engine_ready = factory.gauge("engine_ready", "1 if the engine is ready.", "engine")
        self.engine_heartbeat = factory.gauge(
            "engine_heartbeat_timestamp_seconds",
            "Time of the engine's last heartbeat; 0 before the first one.",
            "engine",
        )
        self.engine_resident_bytes = factory.gauge(
            "engine_resident_bytes",
            "Resident memory of the engine process.",
            "engine",
        )
        self.engine_batch_limit = factory.gauge(
            "engine_batch_limit",
            "Current limit of images per batch; lower for a while after running out of memory.",
            "engine",
        )
        self.engine_restarts = factory.counter(
            "engine_restarts_total",
            "Restarts of the engine process.",
            "engine",
        )

    def _create_decoder_metrics(self, factory: _Factory) -> None:
        self.decode_workers_lost = factory.counter(
            "decode_workers_lost_total",
            "Processes decoding sounds and videos that were lost, by reason; each is replaced.",
            "reason",
        )

    def _create_model_metrics(self, factory: _Factory) -> None:
        self.model_info = factory.gauge(
            "model_info",
            "1 for each model that is served.",
            "model",
            "architecture",
            "device",
            "dtype",
        )
        self.dtype_speedup = factory.gauge(
            "dtype_speedup",
            "Speed in the dtype that serves relative to the other, timed at start; no sample if it"
            " was not.",
            "model",
            "dtype",
        )
        self.level_accuracy = factory.gauge(
            "level_accuracy",
            "Top-1 accuracy from 0 to 1, from the model's profile; no sample without a profile.",
            "model",
            "r",
        )
        self.acceleration_info = factory.gauge(
            "acceleration_info",
            "1 for the acceleration of each model; kind reference or reference-...: plain network.",
            "model",
            "kind",
        )

    def _create_known_series(self) -> None:
        """Export series before their first event.

        A series that starts with its first event has no rate at that event, and a rule has no
        result before it.
        """
        for reason in Refusal:
            self.rejected.labels(reason)
        for kind in BatchFailure:
            self.batch_failures.labels(kind)
        for stage in _CANCELLED_STAGES:
            self.cancelled.labels(stage)
        for loss in Loss:
            self.decode_workers_lost.labels(loss)

    def observe_batch(self, batch: BatchDone) -> None:
        """Count a batch that the engine reports; jobs that never ran belong to no batch."""
        if not batch.images:
            return
        if batch.r0_seconds:
            self._observe_speed(batch)
        self.batch_images.observe(batch.images)
        self.batch_tokens.observe(batch.tokens)
        self.stage_duration.labels("forward").observe(batch.forward_seconds)
        queue_duration = self.stage_duration.labels("queue")
        for outcome in batch.outcomes:
            if not outcome.failure:
                queue_duration.observe(outcome.queue_seconds)
        for kind in batch.failures:
            self.batch_failures.labels(kind).inc()

    def _observe_speed(self, batch: BatchDone) -> None:
        model = batch.model
        self.forward_seconds.labels(model).inc(batch.forward_seconds)
        self.r0_seconds.labels(model).inc(batch.r0_seconds)
        self.predicted_seconds.labels(model).inc(batch.predicted_seconds)
        error = abs(batch.predicted_seconds - batch.forward_seconds)
        self.prediction_error.labels(model).observe(error / batch.forward_seconds)
        self._speedup.add(model, batch.forward_seconds, batch.r0_seconds)

    def observe_image(self, model: str, schedule: Schedule) -> None:
        """Count one image, or one window of a sound or video, that was answered."""
        level = str(schedule)
        if level not in self._levels.get(model, ()):
            level = "other"
        self.images.labels(model, level).inc()

    def observe_error(self, error: RequestError) -> None:
        """Count a refusal or a missed deadline, of a request or of one file of a multipart body."""
        if isinstance(error, DeadlineExceeded):
            self.deadline_missed.inc()
        elif error.refused_for is not None:
            self.rejected.labels(error.refused_for).inc()

    def observe_engine(
        self,
        engine: str,
        read_heartbeat: Callable[[], Heartbeat],
        is_ready: Callable[[], bool],
    ) -> None:
        """Export the state of an engine, which is read at every scrape."""

        def heartbeat_timestamp() -> float:
            beat = read_heartbeat().beat
            if not beat:
                return 0.0
            age = time.monotonic() - beat
            return time.time() - age

        def resident_bytes() -> float:
            return read_heartbeat().resident_bytes

        def batch_limit() -> float:
            return read_heartbeat().batch_limit

        self.engine_ready.labels(engine).set_function(is_ready)
        self.engine_heartbeat.labels(engine).set_function(heartbeat_timestamp)
        self.engine_resident_bytes.labels(engine).set_function(resident_bytes)
        self.engine_batch_limit.labels(engine).set_function(batch_limit)
        self.engine_restarts.labels(engine)

    def observe_restart(self, engine: str) -> None:
        """Count a restart of the process of ``engine``."""
        self.engine_restarts.labels(engine).inc()

    def observe_lost_worker(self, reason: str) -> None:
        """Count a process that decodes sounds and videos and was lost."""
        self.decode_workers_lost.labels(reason).inc()

    def observe_models(self, models: tuple[ModelInfo, ...]) -> None:
        """Export these models, and no others, as served."""
        self.model_info.clear()
        # A restarted engine may use fewer accelerations than before.
        self.acceleration_info.clear()
        self.dtype_speedup.clear()
        self.level_accuracy.clear()
        for model in models:
            self.model_info.labels(model.name, model.architecture, model.device, model.dtype).set(1)
            self.acceleration_info.labels(model.name, model.acceleration).set(1)
            if model.dtype_speedup is not None:
                self.dtype_speedup.labels(model.name, model.dtype).set(model.dtype_speedup)
            self._levels[model.name] = {level.r for level in model.levels}
            for level in model.levels:
                if level.accuracy is not None:
                    self.level_accuracy.labels(model.name, level.r).set(level.accuracy / 100)
            # Export these series before their first batch; see `_create_known_series`.
            self.forward_seconds.labels(model.name)
            self.r0_seconds.labels(model.name)
            self.predicted_seconds.labels(model.name)
            self.prediction_error.labels(model.name)
