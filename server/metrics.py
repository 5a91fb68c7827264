"""What Prometheus scrapes. Only the API process has a registry: each batch's reply carries the engine's numbers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server.errors import DeadlineExceeded, Overloaded, RequestError
from server.ipc.heartbeat import Heartbeat
from server.ipc.messages import BatchDone, ModelInfo
from tome_core.schedule import Schedule

SPEEDUP_WINDOW = 60  # seconds
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_ERRORS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 1.0, 2.0)
_TOKENS = tuple(2**power for power in range(7, 18))
# Why work is refused for want of capacity; other reasons, the faults of requests, come as they
# occur.
_REASONS = ("queue-full", "memory-full", "deadline", "out-of-memory", "not-ready", "draining")

# A second series beside each counter, when it began, is no use here and no base unit either.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class SpeedupWindow(Collector):
    """``tome_speedup_ratio``: how many times as long the last minute's images would have taken without merging."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, deque[tuple[int, float, float]]] = {}

    def add(self, model: str, forward: float, r0_equivalent: float) -> None:
        """One batch took ``forward`` seconds, and would have taken ``r0_equivalent`` at r=0."""
        # One entry per second and model, so that memory is bounded at any rate.
        now = int(self._clock())
        entries = self._seconds.setdefault(model, deque(maxlen=SPEEDUP_WINDOW))
        if entries and entries[-1][0] == now:
            _, earlier, earlier_r0 = entries.pop()
            forward = forward + earlier
            r0_equivalent = r0_equivalent + earlier_r0
        entries.append((now, forward, r0_equivalent))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One sample for each model that ran within the window."""
        family = GaugeMetricFamily(
            "tome_speedup_ratio",
            "tome_r0_equivalent_seconds_total over tome_forward_seconds_total, both over the last"
            " minute: how many times as long its batches would have taken at r=0. No sample for a"
            " model that ran nothing in it.",
            labels=["model"],
        )
        since = self._clock() - SPEEDUP_WINDOW
        for model, entries in self._seconds.items():
            recent = [(forward, r0) for second, forward, r0 in entries if second > since]
            if (forward := sum(entry[0] for entry in recent)) > 0:
                family.add_metric([model], sum(entry[1] for entry in recent) / forward)
        yield family


class Metrics:
    """All metrics of the server, in a registry of their own.

    Args:
        levels: the values of ``r`` that get a label of their own; all others are ``other``.
    """

    def __init__(self, levels: tuple[int, ...], registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self._levels = {str(Schedule.constant(level)) for level in levels}

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"tome_{name}", help_text, labels, registry=registry)

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(f"tome_{name}", help_text, labels, registry=registry)

        def histogram(
            name: str, help_text: str, buckets: tuple[float, ...], *labels: str
        ) -> Histogram:
            return Histogram(f"tome_{name}", help_text, labels, buckets=buckets, registry=registry)

        self.requests = counter(
            "requests_total",
            "Requests answered; code 499 where the client went away first.",
            "route",
            "model",
            "code",
        )
        self.images = counter(
            "images_total", "Images answered, by configured level of r.", "model", "r"
        )
        self.rejected = counter(
            "rejected_total", "Requests and files refused, by reason.", "reason"
        )
        self.cancelled = counter(
            "cancelled_total", "Requests whose client went away, by stage.", "stage"
        )
        self.deadline_missed = counter(
            "deadline_missed_total",
            "Images, or whole multipart requests, whose deadline passed unanswered.",
        )
        self.batch_failures = counter(
            "batch_failures_total", "Batches in which the model failed.", "kind"
        )
        self.forward_seconds = counter(
            "forward_seconds_total",
            "Device time of forward passes, without those that failed and ran again.",
            "model",
        )
        self.r0_seconds = counter(
            "r0_equivalent_seconds_total",
            "What the same images would have taken at r=0: forward time by its prediction, times"
            " that at r=0, both for a quiet machine.",
            "model",
        )
        self.predicted_seconds = counter(
            "predicted_seconds_total",
            "What was predicted of the batches in forward_seconds_total.",
            "model",
        )
        self.prediction_error = histogram(
            "prediction_error_ratio",
            "By how much a batch differs from its prediction, as a share.",
            _ERRORS,
            "model",
        )
        self.request_duration = histogram(
            "request_duration_seconds",
            "From a request's headers to its answer.",
            _SECONDS,
            "route",
            "model",
        )
        self.stage_duration = histogram(
            "stage_duration_seconds",
            "Stages of an image: body, decode, queue, forward, picture.",
            _SECONDS,
            "stage",
        )
        self.batch_images = histogram("batch_images", "Images per forward pass.", _IMAGES)
        self.batch_tokens = histogram("batch_tokens", "Input tokens per forward pass.", _TOKENS)
        self.queue_jobs = gauge("queue_jobs", "Images that the engine has and has not answered.")
        self.inflight_requests = gauge("inflight_requests", "Requests being handled.")
        self.engine_ready = gauge("engine_ready", "1 if the engine takes work.", "engine")
        self.engine_heartbeat = gauge(
            "engine_heartbeat_timestamp_seconds",
            "When the engine's heart beat last; 0 while it has none.",
            "engine",
        )
        self.engine_resident_bytes = gauge(
            "engine_resident_bytes", "Memory of the engine's process.", "engine"
        )
        self.engine_batch_limit = gauge(
            "engine_batch_limit",
            "Most images in one batch now; lower for a while after memory ran out.",
            "engine",
        )
        self.engine_restarts = counter(
            "engine_restarts_total",
            "Processes of the engine that took the place of another.",
            "engine",
        )
        self.model_info = gauge(
            "model_info",
            "1 for each model that is served.",
            "model",
            "architecture",
            "device",
            "dtype",
        )
        self.level_accuracy = gauge(
            "level_accuracy",
            "Top-1 accuracy from 0 to 1 by the model's profile; none without one.",
            "model",
            "r",
        )
        self.acceleration_info = gauge(
            "acceleration_info", "1 for what makes each model fast; kind reference...: the plain network.",
            "model", "kind",
        )  # fmt: skip
        # A series that starts with its first event has no rate at that event, and a rule no result
        # before it.
        for reason in _REASONS:
            self.rejected.labels(reason)
        for kind in ("error", "out-of-memory", "nan"):
            self.batch_failures.labels(kind)
        for stage in ("body", "decode", "queue", "picture"):
            self.cancelled.labels(stage)
        self._speedup = SpeedupWindow()
        registry.register(self._speedup)

    def observe_batch(self, batch: BatchDone) -> None:
        """Take in what the engine says of one batch. Outcomes that never ran belong to no batch and count nothing."""
        if not batch.images:
            return
        if batch.r0_seconds:
            self.forward_seconds.labels(batch.model).inc(batch.forward_seconds)
            self.r0_seconds.labels(batch.model).inc(batch.r0_seconds)
            self.predicted_seconds.labels(batch.model).inc(batch.predicted_seconds)
            error = abs(batch.predicted_seconds - batch.forward_seconds) / batch.forward_seconds
            self.prediction_error.labels(batch.model).observe(error)
            self._speedup.add(batch.model, batch.forward_seconds, batch.r0_seconds)
        self.batch_images.observe(batch.images)
        self.batch_tokens.observe(batch.tokens)
        self.stage_duration.labels("forward").observe(batch.forward_seconds)
        for outcome in batch.outcomes:
            if not outcome.failure:
                self.stage_duration.labels("queue").observe(outcome.queue_seconds)
        for kind in batch.failures:
            self.batch_failures.labels(kind).inc()

    def observe_image(self, model: str, schedule: Schedule) -> None:
        """One image was answered."""
        text = str(schedule)
        self.images.labels(model, text if text in self._levels else "other").inc()

    def observe_error(self, error: RequestError) -> None:
        """One request, or one file of a multipart body, failed."""
        if isinstance(error, DeadlineExceeded):
            self.deadline_missed.inc()
        elif error.status < 500 or isinstance(error, Overloaded):
            self.rejected.labels(error.extensions.get("reason", error.slug)).inc()

    def observe_engine(
        self, engine: str, pulse: Callable[[], Heartbeat], ready: Callable[[], bool]
    ) -> None:
        """Export an engine's state, read whenever it is asked for."""

        def heartbeat() -> float:
            beat = pulse().beat
            return time.time() - (time.monotonic() - beat) if beat else 0.0

        self.engine_ready.labels(engine).set_function(ready)
        self.engine_heartbeat.labels(engine).set_function(heartbeat)
        self.engine_resident_bytes.labels(engine).set_function(lambda: pulse().resident)
        self.engine_batch_limit.labels(engine).set_function(lambda: pulse().batch_limit)
        self.engine_restarts.labels(engine)

    def observe_restart(self, engine: str) -> None:
        """A process of ``engine`` has taken the place of another."""
        self.engine_restarts.labels(engine).inc()

    def observe_models(self, models: tuple[ModelInfo, ...]) -> None:
        """These models, and no others, are served."""
        self.model_info.clear()
        self.level_accuracy.clear()
        for model in models:
            self.model_info.labels(model.name, model.architecture, model.device, model.dtype).set(1)
            self.acceleration_info.labels(model.name, model.acceleration).set(1)
            for level in model.levels:
                if level.accuracy is not None:
                    self.level_accuracy.labels(model.name, level.r).set(level.accuracy / 100)
            # Series that exist from the start have a rate from the first image on.
            self.forward_seconds.labels(model.name)
            self.r0_seconds.labels(model.name)
            self.predicted_seconds.labels(model.name)
            self.prediction_error.labels(model.name)
