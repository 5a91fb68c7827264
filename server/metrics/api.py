"""The metrics of an API process: what it counts, what it knows, and the registry of a scrape."""

from __future__ import annotations

import time
from enum import StrEnum

from prometheus_client import CollectorRegistry, Gauge

from server.decoding.process import Loss
from server.errors import DeadlineExceeded, Refusal, RequestError
from server.ipc.board import EngineRow
from server.ipc.messages import BatchFailure, ModelInfo
from server.ipc.reload import ReloadResult
from server.metrics import definitions
from server.metrics.collector import SharedCollector
from server.metrics.definitions import PREFIX, Definition
from server.metrics.memory import MetricsMemory
from server.metrics.series import SeriesWriter
from tome_core.schedule import Schedule

# Label values that are known in advance, as those of `Refusal` and `Loss` are.
_CANCELLED_STAGES = ("body", "decode", "queue", "picture")


class CascadeResult(StrEnum):
    """How an image of a request with ``confidence`` ended.

    The answer of an image that is ``UNCERTAIN`` or ``FAILED`` is that of its first pass: there was
    no time for a second one, or the second one failed.
    """

    CERTAIN = "certain"
    AGAIN = "again"
    UNCERTAIN = "uncertain"
    FAILED = "failed"


class Metrics:
    """The metrics of API process ``worker``. One process has them at a time.

    Args:
        memory: of all processes of the server; None for a server whose only API process counts
            everything.

    Attributes:
        memory: that of ``memory``, or new memory with a region for each kind of process.
        registry: exports what all processes have counted, and the gauges of this one.
    """

    def __init__(self, memory: MetricsMemory | None = None, worker: int = 0) -> None:
        self.memory = memory or MetricsMemory.create(workers=1, engines=1)
        self.registry = CollectorRegistry()
        self.registry.register(SharedCollector(self.memory.regions()))
        # By model: values of ``r`` with a label of their own; all others are ``other``.
        self._levels: dict[str, set[str]] = {}
        self._writer = SeriesWriter(self.memory.worker(worker))
        self._create_series()
        self._create_known_series()
        self._create_engine_gauges()
        self._create_model_gauges()

    def _create_series(self) -> None:
        writer = self._writer
        self.requests = writer.counters(definitions.REQUESTS)
        self.images = writer.counters(definitions.IMAGES)
        self.cascade_images = writer.counters(definitions.CASCADE_IMAGES)
        self.rejected = writer.counters(definitions.REJECTED)
        self.cancelled = writer.counters(definitions.CANCELLED)
        self.deadline_missed = writer.counter(definitions.DEADLINE_MISSED)
        self.inflight_requests = writer.gauge(definitions.INFLIGHT_REQUESTS)
        self.request_duration = writer.histograms(definitions.REQUEST_DURATION)
        self.stage_duration = writer.histograms(definitions.STAGE_DURATION)
        self.decode_workers_lost = writer.counters(definitions.DECODE_WORKERS_LOST)

    def _create_known_series(self) -> None:
        """Export series before their first event.

        A series that starts with its first event has no rate at that event, and a rule has no
        result before it. This process exports those that others count, too.
        """
        for reason in Refusal:
            self.rejected.labels(reason)
        for kind in BatchFailure:
            self._writer.find(definitions.BATCH_FAILURES, (kind,))
        for stage in _CANCELLED_STAGES:
            self.cancelled.labels(stage)
        for loss in Loss:
            self.decode_workers_lost.labels(loss)
        for result in ReloadResult:
            self._writer.find(definitions.RELOADS, (result,))

    def _create_engine_gauges(self) -> None:
        self.queue_jobs = self._gauge(definitions.QUEUE_JOBS)
        self.engine_ready = self._gauge(definitions.ENGINE_READY)
        self.engine_heartbeat = self._gauge(definitions.ENGINE_HEARTBEAT)
        self.engine_resident_bytes = self._gauge(definitions.ENGINE_RESIDENT_BYTES)
        self.engine_batch_limit = self._gauge(definitions.ENGINE_BATCH_LIMIT)

    def _create_model_gauges(self) -> None:
        self.model_info = self._gauge(definitions.MODEL_INFO)
        self.dtype_speedup = self._gauge(definitions.DTYPE_SPEEDUP)
        self.level_accuracy = self._gauge(definitions.LEVEL_ACCURACY)
        self.acceleration_info = self._gauge(definitions.ACCELERATION_INFO)

    def _gauge(self, definition: Definition) -> Gauge:
        """Return a gauge that this process exports by itself."""
        return Gauge(
            PREFIX + definition.name,
            definition.help_text,
            definition.labels,
            registry=self.registry,
        )

    def observe_image(self, model: str, schedule: Schedule) -> None:
        """Count one image, or one window of a sound or video, that was answered."""
        level = str(schedule)
        if level not in self._levels.get(model, ()):
            level = "other"
        self.images.labels(model, level).inc()

    def observe_cascade(self, model: str, result: CascadeResult) -> None:
        """Count one image of a request with ``confidence``."""
        self.cascade_images.labels(model, result).inc()

    def observe_error(self, error: RequestError) -> None:
        """Count a refusal or a missed deadline, of a request or of one file of a multipart body."""
        if isinstance(error, DeadlineExceeded):
            self.deadline_missed.inc()
        elif error.refused_for is not None:
            self.rejected.labels(error.refused_for).inc()

    def observe_engine(
        self,
        engine: str,
        *rows: EngineRow,
    ) -> None:
        """Export the state of an engine, which is read from the board at every scrape.

        Args:
            rows: of the engine, and of its successor while there is one.
        """

        def is_ready() -> bool:
            return any(row.ready for row in rows)

        def heartbeat_timestamp() -> float:
            beat = max(row.heartbeat().beat for row in rows)
            if not beat:
                return 0.0
            age = time.monotonic() - beat
            return time.time() - age

        def resident_bytes() -> float:
            return sum(row.heartbeat().resident_bytes for row in rows)

        def batch_limit() -> float:
            return min(
                (row.heartbeat().batch_limit for row in rows if row.ready),
                default=max(row.heartbeat().batch_limit for row in rows),
            )

        self.engine_ready.labels(engine).set_function(is_ready)
        self.engine_heartbeat.labels(engine).set_function(heartbeat_timestamp)
        self.engine_resident_bytes.labels(engine).set_function(resident_bytes)
        self.engine_batch_limit.labels(engine).set_function(batch_limit)
        self._writer.find(definitions.ENGINE_RESTARTS, (engine,))

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
            self._create_series_of(model.name)

    def _create_series_of(self, model: str) -> None:
        """Export series of a model before its first batch; see `_create_known_series`."""
        for definition in (
            definitions.FORWARD_SECONDS,
            definitions.R0_SECONDS,
            definitions.PREDICTED_SECONDS,
            definitions.PREDICTION_ERROR,
        ):
            self._writer.find(definition, (model,))
        for result in CascadeResult:
            self.cascade_images.labels(model, result)
