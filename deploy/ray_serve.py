"""The server as a Ray Serve application: ``serve run deploy.ray_serve:app``; docs/operations.md tells more.

A replica is our API and our engine in one Ray actor, without a socket or signals of their own:
Ray's proxy listens, and Ray's controller starts, watches, replaces and stops replicas. Settings are
the usual ``TOME_*`` variables.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from server import logs
from server.api.lifecycle import END_SECONDS, first_of
from server.api.routes.prometheus import create_scrape_app
from server.api.transport.handshakes import ACCEPT_SECONDS
from server.api.transport.listener import HttpServer, http_config, listen
from server.api.transport.protocol import Bounds
from server.asgi import create_server
from server.errors import ConfigError
from server.metrics import Metrics
from server.settings import Settings

log = logging.getLogger("tome.ray")

PROXY_SETTING = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
METRICS_PORTS = 64
LAST_SCRAPE_SECONDS = 1.0  # in which whoever scrapes reads to the end
# So many requests more than a replica has slots are sent to it: then its own 503 comes first, which
# knows when to come back, and probes find a way in.
SPARE_REQUESTS = 32


class Scale(BaseModel, extra="forbid"):
    """Arguments of the application, as in ``serve run deploy.ray_serve:app max_replicas=2``, or ``args`` in YAML."""

    min_replicas: int = Field(1, ge=0, description="Fewest replicas.")
    max_replicas: int = Field(4, ge=1, description="Most replicas.")
    target_ongoing_requests: float = Field(
        32, gt=0, description="Requests in one replica that autoscaling aims at."
    )
    upscale_delay_s: float = Field(
        10, ge=0, description="Seconds of more than that before there are more replicas."
    )
    downscale_delay_s: float = Field(
        300, ge=0, description="Seconds of less before there are fewer."
    )
    cpus: float | None = Field(
        None, gt=0, description="Cores of a replica, and its threads; default TOME_THREADS or 1."
    )
    gpus: float | None = Field(
        None, ge=0, description="GPUs of a replica; default 1 where this machine has any."
    )


def build() -> FastAPI:
    """The application of one replica, made in its process."""
    settings = with_threads(Settings(), ray.get_runtime_context().get_assigned_resources())
    logs.configure(settings.log_level)
    if PROXY_SETTING not in os.environ:
        log.warning(
            "%s is not set: a request whose replica is lost gets 500, not 503", PROXY_SETTING
        )
    app = create_server(settings)
    if settings.metrics_port is not None:
        inner = app.router.lifespan_context
        listener = listen_from(settings.host, settings.metrics_port)

        @contextlib.asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with scraped(app.state.metrics, listener, settings), inner(app):
                yield

        app.router.lifespan_context = lifespan
    return app


@serve.ingress(build)
class Replica:
    """One replica. `app`, which the decorator adds, is what `build` made."""

    app: FastAPI

    def check_health(self) -> None:
        """Raises while no engine takes work: one that was lost or hung is being started again, or never will be.

        The replica refuses requests meanwhile. Ray replaces it if three checks in a row fail, which
        leaves an engine that starts within seconds the time to come back with its replica.
        """
        if not self.app.state.parts.engine.ready:
            raise RuntimeError("no engine takes work")


def app(arguments: dict[str, Any]) -> Application:
    """The application, with resources and limits from ``arguments``, those of `Scale`, and ``TOME_*``."""
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
        # Ray waits for accepted requests, then the lifespan ends, then the metrics' socket; each
        # may take all its time.
        graceful_shutdown_timeout_s=2 * settings.drain_timeout + END_SECONDS + LAST_SCRAPE_SECONDS,
    )
    return deployment.bind()


def default_gpus(devices: tuple[str, ...]) -> int:
    """GPUs of a replica with ``devices``: one for each that is none of the CPU, and with auto 1 where there is any."""
    if devices == ("auto",):
        return int(any(Path("/dev").glob("nvidia[0-9]*")))
    return sum(not device.startswith("cpu") for device in devices)


def with_threads(settings: Settings, resources: dict[str, float]) -> Settings:
    """``settings`` whose engine has as many threads as Ray gave the replica cores, unless they say how many."""
    threads = settings.threads or max(1, int(resources.get("CPU", 1)))
    return settings.model_copy(update={"threads": threads})


def listen_from(host: str, port: int) -> socket.socket:
    """A socket on the first free port from ``port`` on: each replica of a machine has its own. Raises `ConfigError`."""
    for candidate in range(port, port + METRICS_PORTS - 1):
        with contextlib.suppress(ConfigError):
            return listen(host, candidate)
    return listen(host, port + METRICS_PORTS - 1)


@contextlib.asynccontextmanager
async def scraped(
    metrics: Metrics, listener: socket.socket, settings: Settings
) -> AsyncIterator[None]:
    """Serve ``metrics`` on ``listener``."""
    bounds = Bounds(
        settings.max_connections,
        settings.header_timeout,
        settings.send_timeout,
        metrics.observe_error,
    )
    server = HttpServer(http_config(create_scrape_app(metrics), bounds))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    log.info("metrics of this replica are on port %d", listener.getsockname()[1])
    try:
        yield
    finally:
        server.should_exit = True
        await first_of(serving, timeout=ACCEPT_SECONDS + LAST_SCRAPE_SECONDS)
        await server.cut()
        await serving
