"""The life of the API process: listen, get ready, serve, drain, end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from server import logs
from server.allocator import keep_what_is_there
from server.api.app import create_app
from server.api.middleware.auth import Keys
from server.api.routes.prometheus import create_scrape_app
from server.api.transport.handshakes import ACCEPT_SECONDS
from server.api.transport.listener import (
    CUT_SECONDS,
    HttpServer,
    allow_connections,
    http_config,
    listen,
)
from server.api.transport.protocol import Bounds
from server.engine_client.pool import EnginePool
from server.errors import EngineStartError
from server.metrics import Metrics
from server.settings import Settings

log = logging.getLogger("tome.server")

ENGINE_STOP_SECONDS = 10.0
# At most, after twice the time to drain: the last connections, the engines, and what is cut.
END_SECONDS = ACCEPT_SECONDS + ENGINE_STOP_SECONDS + 2 * CUT_SECONDS


def run(settings: Settings, keys: tuple[str, ...], engine: EnginePool, metrics: Metrics) -> int:
    """Serve until SIGTERM or SIGINT. The processes of ``engine`` have been started. Returns the exit code.

    0: every accepted request was answered. 1: no engine could be kept alive, or the end was forced,
    by a second signal or after ``settings.drain_timeout``, with requests left.

    Raises:
        ConfigError: an address cannot be listened on.
    """
    logs.configure(settings.log_level)
    try:
        listener = listen(settings.host, settings.port)
        scrapes = (
            None if settings.metrics_port is None else listen(settings.host, settings.metrics_port)
        )
        service = Service(settings, Keys(keys), engine, metrics, listener, scrapes)
        with asyncio.Runner(loop_factory=service.loop_factory) as runner:
            return runner.run(service.run())
    finally:
        engine.kill()


class Service:
    """The engines and the HTTP servers in front of them, brought up and down in order.

    Args:
        scrapes: listens on the metrics' own port, where they have one.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        engine: EnginePool,
        metrics: Metrics,
        listener: socket.socket,
        scrapes: socket.socket | None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._listener = listener
        app = create_app(settings, keys, engine, metrics)
        self._admission = app.state.parts.admission
        connections = allow_connections(settings.max_connections)

        def bounds() -> Bounds:
            return Bounds(
                connections, settings.header_timeout, settings.send_timeout, metrics.observe_error
            )

        config = http_config(app, bounds(), settings.forwarded_allow_ips)
        self.loop_factory = config.get_loop_factory()
        self._servers = {HttpServer(config): listener}
        if scrapes is not None:
            self._servers[HttpServer(http_config(create_scrape_app(metrics), bounds()))] = scrapes
        self._signalled = asyncio.Event()
        self._forced = asyncio.Event()

    async def run(self) -> int:
        """From the first signal handler to the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        # Listening from the start: a probe sees a live server that is not ready, rather than a
        # refused connection.
        serving = asyncio.create_task(self._listen())
        attending = asyncio.create_task(self._engine.run())
        engines_lived = await self._serve_until_told(attending)
        # Half of the time for what still has to arrive leaves the other half for answering it.
        self._admission.drain(body_seconds=self._settings.drain_timeout / 2)
        answered = await self._drain()
        for http in self._servers:
            http.should_exit = True
            http.force_exit = not answered
        forced = asyncio.create_task(self._forced.wait())
        await first_of(
            serving,
            forced,
            timeout=self._settings.drain_timeout + ACCEPT_SECONDS if answered else 1,
        )
        stopping = asyncio.create_task(self._engine.stop(ENGINE_STOP_SECONDS if answered else 0))
        await first_of(stopping, forced)
        if not stopping.done():
            self._engine.kill()
        await stopping
        attending.cancel()
        await asyncio.gather(attending, return_exceptions=True)
        if cut := sum(await asyncio.gather(*(http.cut() for http in self._servers))):
            log.warning("%d connections had not got all of their answers, and were cut", cut)
        return 0 if engines_lived and answered else 1

    async def _listen(self) -> None:
        await asyncio.gather(
            *(http.serve(sockets=[where]) for http, where in self._servers.items())
        )

    async def _serve_until_told(self, attending: asyncio.Task[None]) -> bool:
        """Get ready and serve, until there is a signal (True) or no engine can be kept alive (False)."""
        signalled = asyncio.create_task(self._signalled.wait())
        ready = asyncio.create_task(self._engine.wait_ready())
        await first_of(signalled, attending, ready)
        if ready.done():
            keep_what_is_there()
            self._announce()
            await first_of(signalled, attending)
        ready.cancel()
        if not attending.done():
            return True
        error = attending.exception()
        log.error("%s", error, exc_info=None if isinstance(error, EngineStartError) else error)
        return False

    async def _drain(self) -> bool:
        """Wait until every accepted request is answered; whether that came about."""
        log.info("stopping; %d requests are being answered", self._admission.admitted)
        return await self._admission.answered(self._settings.drain_timeout, self._forced)

    def _on_signal(self) -> None:
        if self._signalled.is_set():
            self._forced.set()
        self._signalled.set()

    def _announce(self) -> None:
        """Say on stdout where the server is, and how to try it."""
        host, port = self._listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        example = next(iter(sorted(Path("examples").glob("*.png"))), "image.jpg")
        sys.stdout.write(
            f"ready: {url}  try: curl --data-binary @{example} '{url}/classify?r=16'\n"
        )
        sys.stdout.flush()


async def first_of(*tasks: asyncio.Task[Any], timeout: float | None = None) -> None:
    """Wait until one of ``tasks`` is done, ``timeout`` seconds at most."""
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
