"""What the process counts that starts the others."""

from __future__ import annotations

from server.ipc.reload import ReloadResult
from server.metrics import definitions
from server.metrics.memory import MetricsMemory
from server.metrics.series import SeriesWriter


class ParentMetrics:
    """The metrics of the parent process."""

    def __init__(self, memory: MetricsMemory) -> None:
        writer = SeriesWriter(memory.parent())
        self._engine_restarts = writer.counters(definitions.ENGINE_RESTARTS)
        self._worker_restarts = writer.counter(definitions.API_WORKER_RESTARTS)
        self._reloads = writer.counters(definitions.RELOADS)

    def observe_restart(self, engine: str) -> None:
        """Count a restart of the process of ``engine``."""
        self._engine_restarts.labels(engine).inc()

    def observe_worker_restart(self) -> None:
        """Count a restart of an API process."""
        self._worker_restarts.inc()

    def observe_reload(self, result: ReloadResult) -> None:
        """Count a reload that has ended."""
        self._reloads.labels(result).inc()
