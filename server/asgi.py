"""The server as an ASGI application that runs its own engines, for another ASGI server.

`server.supervision` owns whole processes. Here one process is parent and API process at once: the
application's lifespan starts and stops the engines. Sockets, signals and the process belong to the
ASGI server that runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import FastAPI

from server.api.app import create_app
from server.api.decoders import Decoders
from server.api.routes.service import AppComponents
from server.api_keys import Secrets, read_keys
from server.engine_client.engines import Engines
from server.engine_client.reloads import Reloads
from server.errors import EngineStartError
from server.ipc.control import EngineEnded, EngineGivenUp, EngineUp, ReloadEnded, Serving
from server.ipc.reload import ReloadStatus
from server.metrics.api import Metrics
from server.metrics.parent import ParentMetrics
from server.settings import Settings
from server.supervision.engine_group import EngineGroup, EngineNews
from server.supervision.generations import EngineGenerations, answer_reload
from server.supervision.launch import board_size, create_generations, read_catalog_of
from server.supervision.lifecycle import wait_for_first
from server.supervision.shared import SharedMemory
from server.system.stop_plan import StopPlan

if TYPE_CHECKING:
    from server.api.middleware.spans import Tracing

log = logging.getLogger("tome.server")

_WORKER = 0  # the index of the only API process


def create_server(settings: Settings) -> FastAPI:
    """Return the application of ``settings``, whose engines are starting.

    API keys come from the environment, as for ``python -m server``. The lifespan begins when the
    models are ready. It ends when all admitted requests are answered and the engines have stopped.
    Always run it: nothing else stops the engines. ``app.state.components`` has the `Engines`
    and the `Admission`, ``app.state.metrics`` the metrics.

    Raises:
        ConfigError: the configuration of the models or the keys is invalid.
    """
    # Report a mistake in the catalog now, before anything is started.
    catalog = read_catalog_of(settings)
    keys = read_keys(Secrets())
    settings = settings.model_copy(update={"api_workers": 1})
    shared = SharedMemory.create(board_size(settings))
    metrics = Metrics(shared.metrics, _WORKER)
    group = create_generations(settings, catalog, shared, ParentMetrics(shared.metrics))
    engines = Engines(
        shared.board,
        shared.size,
        shared.slots,
        _WORKER,
        settings.max_batch,
        on_models=metrics.observe_models,
    )
    app = create_app(settings, keys, engines, metrics, _WORKER)

    def lifespan(app: FastAPI) -> contextlib.AbstractAsyncContextManager[None]:
        return _run_engines(app, group, settings.stop_plan)

    app.router.lifespan_context = lifespan
    return app


class LocalSubscriber:
    """What the API process is to its engines, where both belong to one process.

    Args:
        engines, reloads: of the application.
        group: to which the application is subscribed.

    Attributes:
        failed: set to the error if the application cannot use an engine.
    """

    def __init__(
        self, engines: Engines, group: EngineGenerations | EngineGroup, reloads: Reloads
    ) -> None:
        self._engines = engines
        self._group = group
        self._reloads = reloads
        self._tasks: set[asyncio.Task[None]] = set()
        self._pids: dict[int, int] = {}  # by engine
        engines.on_lost = self._end_unusable
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def tell(self, news: EngineNews, connection: socket.socket | None = None) -> None:
        """Pass on what has happened to an engine or to the catalog; see `Subscriber`."""
        match news:
            case EngineUp() if connection is not None:
                task = asyncio.get_running_loop().create_task(self._use(news, connection))
                self._tasks.add(task)
                task.add_done_callback(self._on_done)
            case EngineEnded(engine=engine):
                self._engines.engine_ended(engine)
            case EngineGivenUp(engine=engine):
                self._engines.engine_given_up(engine)
            case Serving():
                self._engines.serve(news)
            case ReloadStatus():
                self._reloads.status = news
            case ReloadEnded():
                self._reloads.end(news)

    async def _use(self, up: EngineUp, connection: socket.socket) -> None:
        self._pids[up.engine] = up.pid
        try:
            await self._engines.engine_up(up, connection)
        except EngineStartError as error:
            if up.generation == self._engines.serving.number:
                raise
            return self._group.refuse(up.engine, str(error))
        self._group.confirm(up.engine, _WORKER)

    def _end_unusable(self, engine: int) -> None:
        self._group.end_unusable(engine, self._pids[engine])

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failed.done():
            self.failed.set_exception(error)


@contextlib.asynccontextmanager
async def _run_engines(
    app: FastAPI, group: EngineGenerations, plan: StopPlan
) -> AsyncIterator[None]:
    """Supervise the engines, from the first that is ready until the lifespan ends.

    Raises:
        EngineStartError: no engine could be started.
    """
    components: AppComponents = app.state.components
    decoders: Decoders = app.state.decoders
    tracing: Tracing | None = app.state.tracing
    admission = components.admission
    reloads: Reloads = app.state.reloads
    subscriber = LocalSubscriber(components.engines, group, reloads)
    components.engines.on_released = lambda generation: group.release(generation, _WORKER)
    reloads.send = lambda wanted: answer_reload(group, wanted.ticket, subscriber)
    group.subscribe(_WORKER, subscriber)
    supervision = asyncio.create_task(group.run())
    try:
        ready = asyncio.create_task(components.engines.wait_ready())
        await wait_for_first(supervision, ready, subscriber.failed)
        ready.cancel()
        for ended in (supervision, subscriber.failed):
            if ended.done():
                ended.result()  # raises
        # Nothing awaits a supervision that ends later. The group reports `given_up`, which a health
        # check reads.
        supervision.add_done_callback(_log_failure)
        yield
        group.stop_reloading()
        admission.stop_admitting(plan.bodies)
        all_answered = await admission.wait_until_drained(plan.drain)
        components.engines.close()
        stopping = asyncio.create_task(_stop(group, decoders))
        await wait_for_first(stopping, timeout=plan.engines if all_answered else 0)
        stopping.cancel()
    finally:
        subscriber.failed.cancel()
        decoders.kill()
        group.kill(plan.kill)
        await wait_for_first(supervision, timeout=plan.abort)
        supervision.cancel()
        await asyncio.gather(supervision, return_exceptions=True)
        if tracing is not None:
            tracing.shutdown(plan.spans)


async def _stop(group: EngineGenerations, decoders: Decoders) -> None:
    await asyncio.gather(group.stop(), decoders.stop())


def _log_failure(supervision: asyncio.Task[None]) -> None:
    if supervision.cancelled():
        return
    error = supervision.exception()
    if error is not None:
        log.error("%s", error)
