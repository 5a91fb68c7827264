"""The life of the API process: listen, get ready, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import uvicorn

from server import logs
from server.api.app import create_app
from server.engine.client import EngineClient
from server.errors import ConfigError, EngineStartError
from server.metrics import Metrics
from server.settings import Settings

log = logging.getLogger("tome.server")

KEEP_ALIVE_SECONDS = 75
ENGINE_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.02


def run(settings: Settings, engine: EngineClient, metrics: Metrics) -> int:
    """Serve until SIGTERM or SIGINT. ``engine`` has been spawned. Returns the exit code.

    0: every accepted request was answered. 1: the engine could not start or was lost, or the end was forced, by a
    second signal or after ``settings.drain_timeout``, with requests left.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    logs.configure(settings.log_level)
    try:
        listener = listen(settings.host, settings.port)
        service = Service(settings, engine, metrics, listener)
        with asyncio.Runner(loop_factory=service.loop_factory) as runner:
            return runner.run(service.run())
    finally:
        engine.kill()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` and ``port``. Raises `ConfigError`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((str(address[0]), int(address[1])), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers, which close the socket first and end the process with the signal's code."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals alone."""
        yield


class Service:
    """One engine and one HTTP server, brought up and down in order."""

    def __init__(self, settings: Settings, engine: EngineClient, metrics: Metrics, listener: socket.socket) -> None:
        self._settings, self._engine, self._metrics, self._listener = settings, engine, metrics, listener
        app = create_app(settings, engine, metrics)
        self._admission = app.state.parts.admission
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        self.loop_factory = config.get_loop_factory()
        self._http = HttpServer(config)
        self._signalled, self._forced = asyncio.Event(), asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """From the first signal handler to the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        # Listening from the start: a probe sees a live server that is not ready, rather than a refused connection.
        serving = asyncio.create_task(self._http.serve(sockets=[self._listener]))
        engine_lived = await self._serve_until_told()
        self._admission.draining = True
        answered = await self._drain()
        self._http.should_exit, self._http.force_exit = True, not answered
        forced = asyncio.create_task(self._forced.wait())
        await first_of(serving, forced, timeout=self._settings.drain_timeout if answered else 1)
        stopping = asyncio.create_task(self._engine.stop(ENGINE_STOP_SECONDS if answered else 0))
        await first_of(stopping, forced)
        if not stopping.done():
            self._engine.kill()
        await stopping
        return 0 if engine_lived and answered else 1

    async def _serve_until_told(self) -> bool:
        """Get ready and serve, until there is a signal (True) or the engine cannot start or is lost (False)."""
        signalled = asyncio.create_task(self._signalled.wait())
        starting = asyncio.create_task(self._engine.start(self._settings.start_timeout))
        await first_of(signalled, starting)
        if not starting.done():
            starting.cancel()
            self._engine.kill()  # it would hear of a stop only when its models are loaded
            return True
        if isinstance(error := starting.exception(), EngineStartError):
            log.error("%s", error)
            return False
        starting.result()
        self._metrics.observe_models(tuple(self._engine.models.values()))
        self._announce()
        self._pump = asyncio.create_task(self._engine.serve())
        await first_of(signalled, self._pump)
        if self._pump.done() and (error := self._pump.exception()):
            log.error("what reads the engine's answers failed", exc_info=error)
        return not self._pump.done()

    async def _drain(self) -> bool:
        """Wait until every accepted request is answered; whether that came about."""
        log.info("stopping; %d requests are being answered", self._admission.admitted)
        end = time.monotonic() + self._settings.drain_timeout
        while self._admission.admitted and not self._forced.is_set() and time.monotonic() < end:
            await asyncio.sleep(_POLL_SECONDS)
        if self._admission.admitted:
            log.error("%d requests were cut off", self._admission.admitted)
        return not self._admission.admitted

    def _on_signal(self) -> None:
        if self._signalled.is_set():
            self._forced.set()
        self._signalled.set()

    def _announce(self) -> None:
        """Say on stdout where the server is, and how to try it."""
        host, port = self._listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        example = next(iter(sorted(Path("examples").glob("*.png"))), "image.jpg")
        sys.stdout.write(f"ready: {url}  try: curl --data-binary @{example} '{url}/classify?r=16'\n")
        sys.stdout.flush()


async def first_of(*tasks: asyncio.Task[Any], timeout: float | None = None) -> None:
    """Wait until one of ``tasks`` is done, ``timeout`` seconds at most."""
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
