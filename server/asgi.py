"""The server as an ASGI application that brings its engines with it, for frameworks that listen themselves.

`server.api.lifecycle` is the life of a process of our own. Here that life is the application's
lifespan, so that another ASGI server may run it: sockets, signals and the process are that server's
matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI

from server.api.app import create_app
from server.api.lifecycle import ENGINE_STOP_SECONDS, first_of
from server.api.middleware.auth import Keys
from server.api.routes.service import Parts
from server.api_keys import Secrets, read_keys
from server.catalog.entries import read_catalog
from server.engine_client.launch import launch
from server.metrics import Metrics
from server.settings import Settings

log = logging.getLogger("tome.server")


def create_server(settings: Settings) -> FastAPI:
    """The application of ``settings``, whose engines are starting. Keys come from the environment, as always.

    Its lifespan begins when the models are ready and ends when what was accepted is answered and
    the engines are gone. It has to be run, since nothing else ends the engines. ``app.state.parts``
    has the `EnginePool` and the `Admission`, ``app.state.metrics`` the metrics.

    Raises:
        ConfigError: the models or the keys are described wrongly.
    """
    read_catalog(
        settings.config, settings.models
    )  # a mistake in the file should not wait for torch
    keys = Keys(read_keys(Secrets()))
    metrics = Metrics(settings.levels)
    app = create_app(settings, keys, launch(settings, metrics), metrics)
    app.router.lifespan_context = lambda app: _alive(app.state.parts, settings.drain_timeout)
    return app


@contextlib.asynccontextmanager
async def _alive(parts: Parts, drain_seconds: float) -> AsyncIterator[None]:
    """Keep the engines alive, from the first that is ready until the application is told to stop.

    Raises:
        EngineStartError: no engine could be started.
    """
    engine = parts.engine
    admission = parts.admission
    attending = asyncio.create_task(engine.run())
    try:
        ready = asyncio.create_task(engine.wait_ready())
        await first_of(attending, ready)
        ready.cancel()
        if attending.done():
            attending.result()  # raises
        # One that ends later is no one's to await: the pool says `given_up`, and whoever runs us
        # asks it.
        attending.add_done_callback(_tell)
        yield
        admission.drain(body_seconds=drain_seconds / 2)
        answered = await admission.answered(drain_seconds)
        await engine.stop(ENGINE_STOP_SECONDS if answered else 0)
    finally:
        engine.kill()
        await first_of(attending, timeout=ENGINE_STOP_SECONDS)
        attending.cancel()
        await asyncio.gather(attending, return_exceptions=True)


def _tell(attending: asyncio.Task[None]) -> None:
    if not attending.cancelled() and (error := attending.exception()) is not None:
        log.error("%s", error)
