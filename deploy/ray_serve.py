"""The server as a Ray Serve application: ``serve run deploy.ray_serve:app``.

A replica is the API and the engine in one Ray actor. It has no listening socket for requests and
handles no signals. Ray's proxy accepts connections, and Ray's controller starts, monitors, replaces
and stops replicas. The settings are the usual ``TOME_*`` variables.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from server import logs
from server.api.routes.prometheus import create_metrics_app
from server.api.transport.listener import HttpServer, http_config
from server.api.transport.protocol import ConnectionRegistry
from server.asgi import create_server
from server.errors import ConfigError
from server.metrics.api import Metrics
from server.settings import Settings
from server.supervision.lifecycle import wait_for_first
from server.system.addresses import listen

log = logging.getLogger("tome.ray")

PROXY_SETTING = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
METRICS_PORTS = 64
LAST_SCRAPE_SECONDS = 1.0  # time for a scrape in flight to complete at shutdown
# Ray sends a replica this many more requests than it has slots. The replica then sheds load itself,
# with its own Retry-After, and health checks still reach it.
SPARE_REQUESTS = 32


class Scale(BaseModel, extra="forbid"):
    """Arguments of the application: ``serve run deploy.ray_serve:app max_replicas=2``, or YAML."""

    min_replicas: int = Field(1, ge=0, description="Minimum number of replicas.")
    max_replicas: int = Field(4, ge=1, description="Maximum number of replicas.")
    target_ongoing_requests: float = Field(
        32, gt=0, description="Target number of requests in flight per replica, for autoscaling."
    )
    upscale_delay_s: float = Field(
        10, ge=0, description="Seconds above the target before autoscaling adds replicas."
    )
    downscale_delay_s: float = Field(
        300, ge=0, description="Seconds below the target before autoscaling removes replicas."
    )
    cpus: float | None = Field(
        None, gt=0, description="CPU cores and threads per replica; default TOME_THREADS or 1."
    )
    gpus: float | None = Field(
        None, ge=0, description="GPUs per replica; default 1 if this machine has a GPU, else 0."
    )


def build() -> FastAPI:
    """Build the application of one replica, in the replica's process."""
    resources = ray.get_runtime_context().get_assigned_resources()
    settings = with_default_threads(Settings(), resources)
    logs.configure(settings.log_level)
    if PROXY_SETTING not in os.environ:
        log.warning(
            "%s is not set: a request whose replica is lost gets 500, not 503", PROXY_SETTING
        )
    app = create_server(settings)
    if settings.metrics_port is not None:
        app_lifespan = app.router.lifespan_context
        listeners = listen_on_free_port(settings.hosts, settings.metrics_port)

        @contextlib.asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with serve_metrics(app.state.metrics, listeners, settings), app_lifespan(app):
                yield

        app.router.lifespan_context = lifespan
    return app


@serve.ingress(build)
class Replica:
    """One replica. The decorator sets `app` to the result of `build`."""

    app: FastAPI

    def check_health(self) -> None:
        """Ray's health check: raise `RuntimeError` while no engine is ready.

        The replica rejects requests during this time. Ray replaces the replica after three failed
        checks in a row, so an engine has time to restart before that.
        """
        if not self.app.state.components.engines.ready:
            raise RuntimeError("no engine is ready")


def app(arguments: dict[str, Any]) -> Application:
    """Build the Ray application from ``arguments``, the fields of `Scale`, and ``TOME_*``."""
    scale = Scale.model_validate(arguments)
    settings = Settings()
    gpus = default_gpus(settings.devices) if scale.gpus is None else scale.gpus
    cpus = scale.cpus or settings.threads or 1
    deployment = serve.deployment(
        Replica,
        name="tome-serve",
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=scale.min_replicas,
            max_replicas=scale.max_replicas,
            target_ongoing_requests=scale.target_ongoing_requests,
            upscale_delay_s=scale.upscale_delay_s,
            downscale_delay_s=scale.downscale_delay_s,
        ),
        max_ongoing_requests=settings.queue_limit + SPARE_REQUESTS,
        max_queued_requests=settings.queue_limit,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.5,
        # Sum of the timeouts of the shutdown: Ray drains requests, the lifespan ends, and the
        # metrics server stops.
        graceful_shutdown_timeout_s=settings.stop_plan.total + LAST_SCRAPE_SECONDS,
    )
    return deployment.bind()


def default_gpus(devices: tuple[str, ...]) -> int:
    """Return one GPU per GPU in ``devices``; for ``auto``, one if the machine has a GPU."""
    if devices == ("auto",):
        return int(any(Path("/dev").glob("nvidia[0-9]*")))
    return sum(not device.startswith("cpu") for device in devices)


def with_default_threads(settings: Settings, resources: dict[str, float]) -> Settings:
    """Set one engine thread per core of the replica, unless ``settings`` has a number."""
    threads = settings.threads or max(1, int(resources.get("CPU", 1)))
    return settings.model_copy(update={"threads": threads})


def listen_on_free_port(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listen on the first free port, starting at ``port``. Raises `ConfigError`."""
    for candidate in range(port, port + METRICS_PORTS - 1):
        with contextlib.suppress(ConfigError):
            return listen(hosts, candidate)
    return listen(hosts, port + METRICS_PORTS - 1)


@contextlib.asynccontextmanager
async def serve_metrics(
    metrics: Metrics, listeners: list[socket.socket], settings: Settings
) -> AsyncIterator[None]:
    """Serve ``metrics`` on ``listeners`` within the context."""
    connections = ConnectionRegistry(
        settings.max_connections,
        settings.header_timeout,
        settings.send_timeout,
        metrics.observe_error,
    )
    server = HttpServer(http_config(create_metrics_app(metrics), connections))
    serve_task = asyncio.create_task(server.serve(sockets=listeners))
    log.info("metrics of this replica are on port %d", listeners[0].getsockname()[1])
    try:
        yield
    finally:
        server.should_exit = True
        await wait_for_first(serve_task, timeout=settings.stop_plan.accept + LAST_SCRAPE_SECONDS)
        await server.abort_connections()
        await serve_task
