"""The lifecycle of the API process: listen, wait for the engines, serve, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.allocator import freeze_live_objects
from server.api.app import create_app
from server.api.middleware.auth import ApiKeys
from server.api.routes.prometheus import create_metrics_app
from server.api.transport.addresses import UnixListener, listen, url
from server.api.transport.lingering import LingerLimits
from server.api.transport.listener import (
    MAX_METRICS_CONNECTIONS,
    HttpServer,
    allow_connections,
    http_config,
)
from server.api.transport.protocol import ConnectionRegistry
from server.engine_client.group import EngineGroup
from server.errors import EngineStartError
from server.media.modality import Modality
from server.metrics.api import Metrics
from server.settings import Settings
from server.system.unix_http import socket_path

log = logging.getLogger("tome.server")

# Which of the examples the line names that says that the server is ready, or what it says instead.
_EXAMPLES = {
    Modality.IMAGE: ("*.png", "image.jpg"),
    Modality.AUDIO: ("*.wav", "sound.wav"),
    Modality.VIDEO: ("*.mp4", "video.mp4"),
}


def run(settings: Settings, keys: tuple[str, ...], engines: EngineGroup, metrics: Metrics) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code.

    0: every admitted request has a response. 1: no engine could be kept alive, or requests were
    left when the wait for them ended, by a second signal or after ``settings.drain_timeout``.
    Connections that are aborted because their client does not read do not count.

    Args:
        settings: of the server.
        keys: the API keys; without any, every request passes.
        engines: its processes have been started.
        metrics: of the server.

    Raises:
        ConfigError: the server cannot listen on an address.
    """
    unix = None
    try:
        metrics_listeners: list[socket.socket] = []
        if settings.metrics_port is not None:
            metrics_listeners = listen(settings.hosts, settings.metrics_port)
        if settings.uds is not None:
            unix = UnixListener(settings.uds)
            listeners = [unix.socket]
        else:
            listeners = listen(settings.hosts, settings.port)
        lifecycle = Lifecycle(
            settings, ApiKeys(keys), engines, metrics, listeners, metrics_listeners, unix
        )
        try:
            with asyncio.Runner(loop_factory=lifecycle.loop_factory) as runner:
                return runner.run(lifecycle.run())
        finally:
            lifecycle.kill()
    finally:
        engines.kill(settings.stop_plan.kill)
        if unix is not None:
            unix.remove_file()


class Lifecycle:
    """Starts and stops the engines and the HTTP servers in front of them, in order.

    Args:
        listeners: for requests.
        metrics_listeners: on the port of the metrics; none if they have no port of their own.
        unix: the one of ``listeners`` that has a file, if any.
    """

    def __init__(
        self,
        settings: Settings,
        keys: ApiKeys,
        engines: EngineGroup,
        metrics: Metrics,
        listeners: list[socket.socket],
        metrics_listeners: list[socket.socket],
        unix: UnixListener | None = None,
    ) -> None:
        self._plan = settings.stop_plan
        self._engines = engines
        self._unix = unix
        self._urls = [url(listener) for listener in listeners]
        app = create_app(settings, keys, engines, metrics)
        self._admission = app.state.components.admission
        self._decoders = app.state.decoders
        self._tracing = app.state.tracing
        max_connections = allow_connections(settings.max_connections)

        def create_registry(limit: int) -> ConnectionRegistry:
            return ConnectionRegistry(
                limit,
                settings.header_timeout,
                settings.send_timeout,
                metrics.observe_error,
                linger_limits(settings),
                settings.stop_plan,
            )

        config = http_config(app, create_registry(max_connections), settings.forwarded_allow_ips)
        self.loop_factory = config.get_loop_factory()
        self._servers = {HttpServer(config): listeners}
        if metrics_listeners:
            registry = create_registry(min(max_connections, MAX_METRICS_CONNECTIONS))
            metrics_config = http_config(create_metrics_app(metrics), registry)
            self._servers[HttpServer(metrics_config)] = metrics_listeners
        self._stop_requested = asyncio.Event()
        self._stop_forced = asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal, stop, and return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        # The servers listen before the models are loaded: a health check sees a live server that is
        # not ready, not a refused connection.
        serving = asyncio.create_task(self._serve())
        supervision = asyncio.create_task(self._engines.run())
        engines_alive = await self._wait_for_stop(supervision)
        self._admission.stop_admitting(self._plan.bodies)
        all_answered = await self._wait_for_requests()
        forced_stop = asyncio.create_task(self._stop_forced.wait())
        await self._stop_servers(serving, forced_stop, all_answered)
        await self._stop_engines(forced_stop, all_answered)
        supervision.cancel()
        await asyncio.gather(supervision, return_exceptions=True)
        await self._abort_connections()
        if self._tracing is not None:
            self._tracing.shutdown(self._plan.spans)
        return 0 if engines_alive and all_answered else 1

    async def _serve(self) -> None:
        servers = self._servers.items()
        await asyncio.gather(*(server.serve(sockets=listeners) for server, listeners in servers))

    async def _wait_for_stop(self, supervision: asyncio.Task[None]) -> bool:
        """Serve until a signal (True), or until no engine can be kept alive (False)."""
        stop_requested = asyncio.create_task(self._stop_requested.wait())
        ready = asyncio.create_task(self._engines.wait_ready())
        await wait_for_first(stop_requested, supervision, ready)
        if ready.done():
            freeze_live_objects()
            default = next(iter(self._engines.models.values()))
            sys.stdout.write(ready_line(self._urls, default.modality))
            sys.stdout.flush()
            await wait_for_first(stop_requested, supervision)
        ready.cancel()
        if not supervision.done():
            return True
        error = supervision.exception()
        # The message of an EngineStartError explains itself; other errors need their traceback.
        traceback_error = None if isinstance(error, EngineStartError) else error
        log.error("%s", error, exc_info=traceback_error)
        return False

    async def _wait_for_requests(self) -> bool:
        """Wait until every admitted request has a response. Return whether all of them have."""
        log.info("stopping; %d requests are in flight", self._admission.admitted)
        return await self._admission.wait_until_drained(self._plan.drain, self._stop_forced)

    async def _stop_servers(
        self, serving: asyncio.Task[None], forced_stop: asyncio.Task[Any], all_answered: bool
    ) -> None:
        """Stop the HTTP servers; without a wait for their connections unless ``all_answered``."""
        if self._unix is not None:
            self._unix.remove_file()  # so that no connection follows those that are pending
        for server in self._servers:
            server.should_exit = True
            server.force_exit = not all_answered
        timeout = self._plan.forced_send
        if all_answered:
            timeout = self._plan.accept + self._plan.send
        await wait_for_first(serving, forced_stop, timeout=timeout)

    async def _stop_engines(self, forced_stop: asyncio.Task[Any], all_answered: bool) -> None:
        """Let engines and decoders end; kill what has not when the time is over, or by force."""

        async def stop_all() -> None:
            await asyncio.gather(self._engines.stop(), self._decoders.stop())

        stopping = asyncio.create_task(stop_all())
        timeout = self._plan.engines if all_answered else 0
        await wait_for_first(stopping, forced_stop, timeout=timeout)
        self.kill()
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)

    def kill(self) -> None:
        """Kill all engines and decoders at once."""
        self._engines.kill()
        self._decoders.kill()

    async def _abort_connections(self) -> None:
        counts = await asyncio.gather(*(server.abort_connections() for server in self._servers))
        incomplete = sum(counts)
        if incomplete:
            log.warning("%d connections were cut before their responses were complete", incomplete)

    def _on_signal(self) -> None:
        """Request a stop; force it at the second signal."""
        if self._stop_requested.is_set():
            self._stop_forced.set()
        self._stop_requested.set()


def ready_line(urls: Sequence[str], modality: Modality) -> str:
    """Return the line that says where the server listens, with an example request.

    Args:
        modality: of the default model.
    """
    pattern, example = _EXAMPLES[modality]
    examples = sorted(Path("examples").glob(pattern))
    if examples:
        example = str(examples[0])
    curl = f"curl --data-binary @{example}"
    target = urls[0]
    path = socket_path(target)
    if path is not None:
        curl += f" --unix-socket {path}"
        target = "http://localhost"
    return f"ready: {' '.join(urls)}  try: {curl} '{target}/classify?r=16'\n"


def linger_limits(settings: Settings) -> LingerLimits:
    """Return the limits of reading on after a response: those of a body, and its default at least.

    A client may well send all of its body before it reads.
    """
    largest_media = max(settings.audio_body_bytes, settings.video_body_bytes)
    size = max(settings.max_body_bytes, largest_media, LingerLimits.size)
    return LingerLimits(settings.body_timeout, size)


async def wait_for_first(*tasks: asyncio.Task[Any], timeout: float | None = None) -> None:
    """Wait until the first of ``tasks`` is done, for ``timeout`` seconds at most."""
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
