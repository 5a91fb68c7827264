"""From settings to running engines, for whatever stands in front of them."""

from __future__ import annotations

from server.engine_client.health import HealthPolicy
from server.engine_client.pool import EnginePool
from server.ipc.engine_config import EngineConfig
from server.metrics import Metrics
from server.settings import Settings


def launch(settings: Settings, metrics: Metrics) -> EnginePool:
    """Start an engine process for each device; their models load while the caller goes on.

    The caller ends them, by `EnginePool.stop` or `EnginePool.kill`.
    """
    configs = [
        EngineConfig(
            config=settings.config,
            models=settings.models,
            device=device,
            dtype=settings.dtype,
            threads=settings.threads,
            levels=settings.levels,
            max_batch=settings.max_batch,
            max_batch_work=settings.max_batch_work,
            slots=settings.queue_limit,
            target_seconds=settings.target_ms / 1000,
            log_level=settings.log_level,
            share=len(settings.devices),
        )
        for device in settings.devices
    ]
    return EnginePool(
        configs,
        HealthPolicy(start=settings.start_timeout, silent=settings.heartbeat_timeout),
        on_batch=metrics.observe_batch,
        on_models=metrics.observe_models,
        on_restart=metrics.observe_restart,
    )
