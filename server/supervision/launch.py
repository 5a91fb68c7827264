"""Start of all processes of a server, as the settings say."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from server.api_keys import ServerKeys
from server.catalog.entries import Catalog, open_catalog
from server.ipc.api_config import ApiConfig
from server.ipc.board import BoardSize
from server.ipc.engine_config import EngineConfig
from server.metrics.parent import ParentMetrics
from server.settings import Settings
from server.supervision.api_group import ApiGroup
from server.supervision.engine_group import EngineGroup
from server.supervision.generations import EngineGenerations
from server.supervision.health import HealthPolicy
from server.supervision.shared import SharedMemory

# An API process that is not ready by then hangs in an import. A busy machine takes many seconds.
_API_START_SECONDS = 60.0
# Its heartbeat comes from the event loop, which a large JSON body or a machine with too few cores
# stops for longer than the thread of an engine's heartbeat.
_API_HEARTBEAT_FACTOR = 2.5


@dataclass(frozen=True)
class Launched:
    """The processes of a server."""

    engines: EngineGenerations
    apis: ApiGroup


def launch(
    settings: Settings,
    keys: ServerKeys,
    listeners: Sequence[socket.socket],
    metrics_listeners: Sequence[socket.socket],
) -> Launched:
    """Start all processes, without waiting until they are ready. The caller ends them.

    Raises:
        ConfigError: the catalog is invalid.
    """
    catalog = read_catalog_of(settings)
    shared = SharedMemory.create(board_size(settings))
    metrics = ParentMetrics(shared.metrics)
    engines = create_generations(settings, catalog, shared, metrics)
    config = ApiConfig(
        settings,
        keys.api,
        worker=0,
        board=shared.size,
        listeners=tuple(listener.fileno() for listener in listeners),
        metrics_listeners=tuple(listener.fileno() for listener in metrics_listeners),
        admin_keys=keys.admin,
    )
    policy = HealthPolicy(
        start_timeout=_API_START_SECONDS,
        heartbeat_timeout=_API_HEARTBEAT_FACTOR * settings.heartbeat_timeout,
    )
    apis = ApiGroup(config, policy, shared, engines, on_restart=metrics.observe_worker_restart)
    return Launched(engines, apis)


def board_size(settings: Settings) -> BoardSize:
    """Return the size of the board."""
    return BoardSize(len(settings.devices), settings.api_workers, settings.queue_limit)


def read_catalog_of(settings: Settings) -> Catalog:
    """Return the models to serve. Raises `ConfigError`."""
    return open_catalog(settings.config, settings.models)


def create_generations(
    settings: Settings, catalog: Catalog, shared: SharedMemory, metrics: ParentMetrics
) -> EngineGenerations:
    """Start one engine process per device, and let reloads of the catalog replace them.

    The caller ends the processes with `EngineGenerations.stop` or `EngineGenerations.kill`.

    Args:
        catalog: of the first generation.
    """
    read = partial(read_catalog_of, settings)
    create = partial(create_engines, settings, shared, metrics.observe_restart)
    return EngineGenerations(read, create, catalog, shared, metrics.observe_reload)


def create_engines(
    settings: Settings,
    shared: SharedMemory,
    on_restart: Callable[[str], None],
    catalog: Catalog,
    generation: int,
    engines: Sequence[int],
) -> EngineGroup:
    """Start engine processes, without waiting until their models are loaded.

    Args:
        engines: their indices; two that differ by the number of devices have the same device.
    """
    devices = settings.devices
    configs = [
        _engine_config(
            settings, catalog, generation, engine, devices[engine % len(devices)], shared.size
        )
        for engine in engines
    ]
    policy = HealthPolicy(
        start_timeout=settings.start_timeout,
        heartbeat_timeout=settings.heartbeat_timeout,
    )
    return EngineGroup(configs, policy, shared, on_restart)


def _engine_config(
    settings: Settings,
    catalog: Catalog,
    generation: int,
    engine: int,
    device: str,
    board: BoardSize,
) -> EngineConfig:
    """Return the configuration of the engine on ``device``."""
    return EngineConfig(
        specs=catalog.specs,
        device=device,
        dtype=settings.dtype,
        threads=settings.threads,
        levels=settings.levels,
        max_batch=settings.max_batch,
        max_batch_work=settings.max_batch_work,
        target_seconds=settings.target_seconds,
        log_level=settings.log_level,
        engine=engine,
        board=board,
        cpu_isa=settings.cpu_isa,
        generation=generation,
    )
