"""Start of the engine processes, as the settings say."""

from __future__ import annotations

from server.engine_client.group import EngineGroup
from server.engine_client.health import HealthPolicy
from server.ipc.engine_config import EngineConfig
from server.metrics.api import Metrics
from server.metrics.engine import EngineMetrics
from server.metrics.parent import ParentMetrics
from server.settings import Settings


def create_engines(settings: Settings, metrics: Metrics) -> EngineGroup:
    """Start one engine process per device, without waiting until its models are loaded.

    The caller ends the processes with `EngineGroup.stop` or `EngineGroup.kill`.
    """
    configs = [_engine_config(settings, device) for device in settings.devices]
    policy = HealthPolicy(
        start_timeout=settings.start_timeout,
        heartbeat_timeout=settings.heartbeat_timeout,
    )
    return EngineGroup(
        configs,
        policy,
        # One region for all engines: this process counts their batches, as it starts them.
        on_batch=EngineMetrics(metrics.memory, 0).observe_batch,
        on_models=metrics.observe_models,
        on_restart=ParentMetrics(metrics.memory).observe_restart,
    )


def _engine_config(settings: Settings, device: str) -> EngineConfig:
    """Return the configuration of the engine on ``device``."""
    return EngineConfig(
        catalog_path=settings.config,
        models=settings.models,
        device=device,
        dtype=settings.dtype,
        threads=settings.threads,
        levels=settings.levels,
        max_batch=settings.max_batch,
        max_batch_work=settings.max_batch_work,
        slots=settings.queue_limit,
        target_seconds=settings.target_seconds,
        log_level=settings.log_level,
        engine_count=len(settings.devices),
        cpu_isa=settings.cpu_isa,
    )
