"""The life of an API process: wait for orders of the parent process, serve, stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from typing import Any

from server.allocator import freeze_live_objects, keep_some_freed_memory
from server.api.app import create_app
from server.api.routes.prometheus import create_metrics_app
from server.api.transport.acceptor import ConnectionBalance
from server.api.transport.lingering import LingerLimits
from server.api.transport.listener import (
    MAX_METRICS_CONNECTIONS,
    HttpServer,
    allow_connections,
    http_config,
)
from server.api.transport.protocol import ConnectionRegistry
from server.api_keys import ServerKeys
from server.engine_client.engines import Engines
from server.errors import EngineStartError
from server.ipc.api_config import ApiConfig
from server.ipc.board import BEAT_SECONDS, Board, WorkerRow
from server.ipc.channel import ChannelClosed
from server.ipc.control import (
    ApiFailed,
    Close,
    Drain,
    Drained,
    EngineAttached,
    EngineEnded,
    EngineGivenUp,
    EngineRefused,
    EngineUnusable,
    EngineUp,
    Released,
    ReloadEnded,
    Retire,
    RetireWanted,
    Serve,
    Serving,
    Started,
)
from server.ipc.control_channel import ControlChannel
from server.ipc.reload import ReloadStatus
from server.metrics.api import Metrics
from server.metrics.memory import MetricsMemory
from server.settings import Settings

log = logging.getLogger("tome.server")

_EXIT_PARENT_LOST = 1


def run(
    config: ApiConfig,
    connection: socket.socket,
    slots: int,
    board: Board,
    metrics_memory: MetricsMemory,
) -> int:
    """Serve until the parent says that this process ends, and return the exit code.

    0: every admitted request has a response, else 1.

    Args:
        connection: the channel to the parent.
        slots: descriptor of the memory of the slots.
        metrics_memory: in which all processes count.
    """
    keep_some_freed_memory()
    settings = config.settings
    metrics = Metrics(metrics_memory, config.worker)
    engines = Engines(
        board,
        config.board,
        slots,
        config.worker,
        settings.max_batch,
        on_models=metrics.observe_models,
    )
    lifecycle = Lifecycle(config, engines, metrics, board.workers[config.worker], connection)
    with asyncio.Runner(loop_factory=lifecycle.loop_factory) as runner:
        return runner.run(lifecycle.run())


class Lifecycle:
    """Serves HTTP between the orders of the parent process.

    Args:
        row: of this process on the board.
        connection: the channel to the parent.
    """

    def __init__(
        self,
        config: ApiConfig,
        engines: Engines,
        metrics: Metrics,
        row: WorkerRow,
        connection: socket.socket,
    ) -> None:
        settings = config.settings
        self._plan = settings.stop_plan
        self._engines = engines
        self._row = row
        self._connection = connection
        keys = ServerKeys(config.keys, config.admin_keys)
        app = create_app(settings, keys, engines, metrics, config.worker)
        self._admission = app.state.components.admission
        self._decoders = app.state.decoders
        self._tracing = app.state.tracing
        self._reloads = app.state.reloads
        max_connections = allow_connections(-(-settings.max_connections // config.board.workers))

        def create_registry(limit: int) -> ConnectionRegistry:
            return ConnectionRegistry(
                limit,
                settings.header_timeout,
                settings.send_timeout,
                metrics.observe_error,
                linger_limits(settings),
                settings.stop_plan,
            )

        http = http_config(app, create_registry(max_connections), settings.forwarded_allow_ips)
        self.loop_factory = http.get_loop_factory()
        balance = ConnectionBalance(engines.board, config.worker)
        server = HttpServer(http, balance.has_fewest)
        self._servers = {server: _sockets(config.listeners)}
        if config.metrics_listeners:
            registry = create_registry(min(max_connections, MAX_METRICS_CONNECTIONS))
            metrics_http = http_config(create_metrics_app(metrics), registry)
            self._servers[HttpServer(metrics_http)] = _sockets(config.metrics_listeners)
        self._serving: asyncio.Task[None] | None = None
        self._pids: dict[int, int] = {}  # of the engines
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._forced = False
        self._all_answered = True

    async def run(self) -> int:
        """Follow the orders until one says that the process ends, and return the exit code."""
        loop = asyncio.get_running_loop()
        control = ControlChannel(self._connection)
        # A signal to all processes at once stops the server, whose end the parent orders.
        loop.add_signal_handler(signal.SIGTERM, control.send, RetireWanted())
        self._engines.on_lost = lambda engine: control.send(
            EngineUnusable(engine, self._pids[engine])
        )
        self._engines.on_released = lambda generation: control.send(Released(generation))
        self._reloads.send = control.send
        self._start(self._beat())
        self._start(self._follow_orders(control))
        control.send(Started())
        await self._closing.wait()
        await self._stop_serving()
        self._engines.close()
        await self._stop_decoders()
        await self._abort_connections()
        if self._tracing is not None:
            self._tracing.shutdown(self._plan.spans)
        return 0 if self._all_answered else 1

    async def _follow_orders(self, control: ControlChannel) -> None:
        try:
            while True:
                order, connection = await control.receive()
                self._follow(order, connection, control)
        except ChannelClosed:
            log.error("the parent process has ended; this process ends too")
            self._decoders.kill()
            sys.stderr.flush()
            os._exit(_EXIT_PARENT_LOST)

    def _follow(
        self, order: object, connection: socket.socket | None, control: ControlChannel
    ) -> None:
        match order:
            case EngineUp() if connection is not None:
                self._start(self._use_engine(order, connection, control))
            case EngineEnded(engine=engine):
                self._engines.engine_ended(engine)
            case EngineGivenUp(engine=engine):
                self._engines.engine_given_up(engine)
            case Serving():
                self._engines.serve(order)
            case ReloadStatus():
                self._reloads.status = order
            case ReloadEnded():
                self._reloads.end(order)
            case Serve():
                self._serving = asyncio.create_task(self._serve())
                self._row.set_accepting(True)
            case Drain():
                self._start(self._drain(control))
            case Close(forced=forced):
                self._close(forced)
            case Retire():
                self._retire()
            case _:
                raise AssertionError(f"the parent sent {type(order).__name__}")

    async def _use_engine(
        self, up: EngineUp, connection: socket.socket, control: ControlChannel
    ) -> None:
        """Send jobs to an engine from now on, and tell the parent so."""
        is_first = not self._engines.models
        self._pids[up.engine] = up.pid
        try:
            await self._engines.engine_up(up, connection)
        except EngineStartError as error:
            if up.generation != self._engines.serving.number:
                return control.send(EngineRefused(up.engine, str(error)))
            return control.send(ApiFailed(str(error)))
        if is_first:
            freeze_live_objects()
        control.send(EngineAttached(up.engine))

    async def _serve(self) -> None:
        servers = self._servers.items()
        await asyncio.gather(*(server.serve(sockets=listeners) for server, listeners in servers))

    async def _drain(self, control: ControlChannel) -> None:
        """Refuse new requests, and report when every admitted one has its response."""
        self._admission.stop_admitting(self._plan.bodies)
        self._all_answered = await self._admission.wait_until_drained(self._plan.drain)
        control.send(Drained(self._all_answered))

    def _close(self, forced: bool) -> None:
        """End; without a wait for connections if ``forced``."""
        self._forced = forced
        for server in self._servers:
            server.force_exit = forced
        self._closing.set()

    def _retire(self) -> None:
        """Accept nothing any more, answer what arrives on open connections, and end."""
        self._admission.retire()
        for server in self._servers:
            server.accepts_pending = False
        self._closing.set()

    async def _stop_serving(self) -> None:
        """Stop the HTTP servers; without a wait for their connections if the stop is forced."""
        self._row.set_accepting(False)
        if self._serving is None:
            return
        for server in self._servers:
            server.should_exit = True
        timeout = self._plan.forced_send if self._forced else self._plan.accept + self._plan.send
        await asyncio.wait([self._serving], timeout=timeout)
        self._all_answered &= not self._admission.admitted

    async def _stop_decoders(self) -> None:
        stopping = asyncio.create_task(self._decoders.stop())
        await asyncio.wait([stopping], timeout=self._plan.abort)
        self._decoders.kill()
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)

    async def _abort_connections(self) -> None:
        counts = await asyncio.gather(*(server.abort_connections() for server in self._servers))
        incomplete = sum(counts)
        if incomplete:
            log.warning("%d connections were cut before their responses were complete", incomplete)

    async def _beat(self) -> None:
        while True:
            self._row.beat(time.monotonic())
            await asyncio.sleep(BEAT_SECONDS)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        """End the process if a part of it has failed: the parent starts another."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("an API process failed", exc_info=task.exception())
            self._all_answered = False
            self._close(forced=True)


def _sockets(descriptors: tuple[int, ...]) -> list[socket.socket]:
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]


def linger_limits(settings: Settings) -> LingerLimits:
    """Return the limits of reading on after a response: those of a body, and its default at least.

    A client may well send all of its body before it reads.
    """
    largest_media = max(settings.audio_body_bytes, settings.video_body_bytes)
    size = max(settings.max_body_bytes, largest_media, LingerLimits.size)
    return LingerLimits(settings.body_timeout, size)
