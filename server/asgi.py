"""The server as an ASGI application that runs its own engines, for another ASGI server.

`server.api.lifecycle` owns the whole process. Here the application's lifespan starts and stops the
engines. Sockets, signals and the process belong to the ASGI server that runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import FastAPI

from server.api.app import create_app
from server.api.decoders import Decoders
from server.api.lifecycle import wait_for_first
from server.api.middleware.auth import ApiKeys
from server.api.routes.service import AppComponents
from server.api_keys import Secrets, read_server_keys
from server.catalog.entries import read_catalog
from server.engine_client.group import EngineGroup
from server.engine_client.launch import create_engines
from server.metrics.api import Metrics
from server.settings import Settings
from server.system.stop_plan import StopPlan

if TYPE_CHECKING:
    from server.api.middleware.spans import Tracing

log = logging.getLogger("tome.server")


def create_server(settings: Settings) -> FastAPI:
    """Return the application of ``settings``, whose engines are starting.

    API keys come from the environment, as for ``python -m server``. The lifespan begins when the
    models are ready. It ends when all admitted requests are answered and the engines have stopped.
    Always run it: nothing else stops the engines. ``app.state.components`` has the `EngineGroup`
    and the `Admission`, ``app.state.metrics`` the metrics.

    Raises:
        ConfigError: the configuration of the models or the keys is invalid.
    """
    # Report a mistake in the catalog now, not after the engine has imported torch.
    read_catalog(settings.config, settings.models)
    keys = ApiKeys(read_server_keys(Secrets()))
    metrics = Metrics()
    engines = create_engines(settings, metrics)
    app = create_app(settings, keys, engines, metrics)

    def lifespan(app: FastAPI) -> contextlib.AbstractAsyncContextManager[None]:
        return _run_engines(app, settings.stop_plan)

    app.router.lifespan_context = lifespan
    return app


@contextlib.asynccontextmanager
async def _run_engines(app: FastAPI, plan: StopPlan) -> AsyncIterator[None]:
    """Supervise the engines, from the first that is ready until the lifespan ends.

    Raises:
        EngineStartError: no engine could be started.
    """
    components: AppComponents = app.state.components
    decoders: Decoders = app.state.decoders
    tracing: Tracing | None = app.state.tracing
    engines = components.engines
    admission = components.admission
    supervision = asyncio.create_task(engines.run())
    try:
        ready = asyncio.create_task(engines.wait_ready())
        await wait_for_first(supervision, ready)
        ready.cancel()
        if supervision.done():
            supervision.result()  # raises
        # Nothing awaits a supervision that ends later. The group reports `given_up`, which a health
        # check reads.
        supervision.add_done_callback(_log_failure)
        yield
        admission.stop_admitting(plan.bodies)
        all_answered = await admission.wait_until_drained(plan.drain)
        stopping = asyncio.create_task(_stop(engines, decoders))
        await wait_for_first(stopping, timeout=plan.engines if all_answered else 0)
        stopping.cancel()
    finally:
        decoders.kill()
        engines.kill(plan.kill)
        await wait_for_first(supervision, timeout=plan.abort)
        supervision.cancel()
        await asyncio.gather(supervision, return_exceptions=True)
        if tracing is not None:
            tracing.shutdown(plan.spans)


async def _stop(engines: EngineGroup, decoders: Decoders) -> None:
    await asyncio.gather(engines.stop(), decoders.stop())


def _log_failure(supervision: asyncio.Task[None]) -> None:
    if supervision.cancelled():
        return
    error = supervision.exception()
    if error is not None:
        log.error("%s", error)
