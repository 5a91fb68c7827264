"""What an engine counts of its batches. Nothing here is exported, so no engine needs more."""

from __future__ import annotations

from server.ipc.messages import BatchDone
from server.metrics import definitions
from server.metrics.memory import MetricsMemory
from server.metrics.series import SeriesWriter
from server.metrics.speedup import SpeedupWindow


class EngineMetrics:
    """The metrics of engine ``engine``. One process has them at a time, and one thread of it."""

    def __init__(self, memory: MetricsMemory, engine: int) -> None:
        writer = SeriesWriter(memory.engine(engine))
        self._batch_images = writer.histogram(definitions.BATCH_IMAGES)
        self._batch_tokens = writer.histogram(definitions.BATCH_TOKENS)
        self._batch_failures = writer.counters(definitions.BATCH_FAILURES)
        stage_duration = writer.histograms(definitions.STAGE_DURATION)
        self._forward_duration = stage_duration.labels("forward")
        self._queue_duration = stage_duration.labels("queue")
        self._forward_seconds = writer.counters(definitions.FORWARD_SECONDS)
        self._r0_seconds = writer.counters(definitions.R0_SECONDS)
        self._predicted_seconds = writer.counters(definitions.PREDICTED_SECONDS)
        self._prediction_error = writer.histograms(definitions.PREDICTION_ERROR)
        self._speedup = SpeedupWindow(writer)

    def observe_batch(self, batch: BatchDone) -> None:
        """Count a batch; jobs that never ran belong to no batch."""
        if not batch.images:
            return
        if batch.predicted_seconds:
            self._observe_speed(batch)
        self._batch_images.observe(batch.images)
        self._batch_tokens.observe(batch.tokens)
        self._forward_duration.observe(batch.forward_seconds)
        for outcome in batch.outcomes:
            if not outcome.failure:
                self._queue_duration.observe(outcome.queue_seconds)
        for kind in batch.failures:
            self._batch_failures.labels(kind).inc()

    def _observe_speed(self, batch: BatchDone) -> None:
        model = batch.model
        self._forward_seconds.labels(model).inc(batch.forward_seconds)
        self._r0_seconds.labels(model).inc(batch.r0_seconds)
        self._predicted_seconds.labels(model).inc(batch.predicted_seconds)
        error = abs(batch.predicted_seconds - batch.forward_seconds)
        self._prediction_error.labels(model).observe(error / batch.forward_seconds)
        self._speedup.add(model, batch.forward_seconds, batch.r0_seconds)
