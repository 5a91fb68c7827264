"""The life of a server, seen from its parent process: listen, start all others, wait, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.api_keys import ServerKeys
from server.errors import ApiStartError, EngineStartError
from server.media.modality import Modality
from server.settings import Settings
from server.supervision.api_group import ApiGroup
from server.supervision.generations import EngineGenerations
from server.supervision.launch import Launched, launch
from server.system.addresses import UnixListener, listen, url
from server.system.stop_plan import StopPlan
from server.system.unix_http import socket_path

log = logging.getLogger("tome.server")

# Which of the examples the line names that says that the server is ready, or what it says instead.
_EXAMPLES = {
    Modality.IMAGE: ("*.png", "image.jpg"),
    Modality.AUDIO: ("*.wav", "sound.wav"),
    Modality.VIDEO: ("*.mp4", "video.mp4"),
}


@dataclass(frozen=True)
class Listeners:
    """The listening sockets, which all API processes inherit.

    Attributes:
        requests: for requests.
        metrics: on the port of the metrics; none if they have no port of their own.
        unix: the one of ``requests`` that has a file, if any.
    """

    requests: Sequence[socket.socket]
    metrics: Sequence[socket.socket]
    unix: UnixListener | None

    @classmethod
    def open(cls, settings: Settings) -> Listeners:
        """Listen where ``settings`` say. Raises `ConfigError`."""
        metrics: list[socket.socket] = []
        if settings.metrics_port is not None:
            metrics = listen(settings.hosts, settings.metrics_port)
        if settings.uds is not None:
            unix = UnixListener(settings.uds)
            return cls([unix.socket], metrics, unix)
        return cls(listen(settings.hosts, settings.port), metrics, None)

    def remove_file(self) -> None:
        """Remove the file of the Unix socket, so that no connection follows those that wait."""
        if self.unix is not None:
            self.unix.remove_file()

    def close(self) -> None:
        """Close this process's descriptors. Those of the API processes stay open."""
        for listener in (*self.requests, *self.metrics):
            listener.close()


def run(settings: Settings, keys: ServerKeys) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code.

    SIGHUP reloads the catalog, SIGUSR1 restarts the API processes.

    0: every admitted request has a response. 1: no engine could be kept alive, or no API process
    could be started, or requests were left when the wait for them ended, by a second signal or
    after ``settings.drain_timeout``. Connections that are aborted because their client does not
    read do not count.

    Raises:
        ConfigError: the server cannot listen on an address, or the catalog is invalid.
    """
    listeners = Listeners.open(settings)
    # From before the catalog is read until the event loop handles signals.
    early: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, frame: early.append(number))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with asyncio.Runner() as runner:
            return runner.run(_serve(settings, keys, listeners, early))
    finally:
        listeners.remove_file()
        listeners.close()


async def _serve(
    settings: Settings, keys: ServerKeys, listeners: Listeners, early: Sequence[int]
) -> int:
    launched = launch(settings, keys, listeners.requests, listeners.metrics)
    plan = settings.stop_plan
    try:
        return await Lifecycle(launched, listeners, plan).run(reload=bool(early))
    finally:
        launched.apis.kill(plan.kill)
        launched.engines.kill(plan.kill)


class Lifecycle:
    """Waits for the processes of a server and stops them, in order.

    Args:
        launched: the processes, which have been started.
    """

    def __init__(self, launched: Launched, listeners: Listeners, plan: StopPlan) -> None:
        self._engines: EngineGenerations = launched.engines
        self._apis: ApiGroup = launched.apis
        self._listeners = listeners
        self._plan = plan
        self._urls = [url(listener) for listener in listeners.requests]
        self._restarts: set[asyncio.Task[None]] = set()
        self._stop_requested = asyncio.Event()
        self._stop_forced = asyncio.Event()

    async def run(self, reload: bool = False) -> int:
        """Serve until a signal, stop, and return the exit code.

        Args:
            reload: whether a reload was requested already.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        loop.add_signal_handler(signal.SIGUSR1, self._on_restart)
        if reload:
            self._on_reload()
        engines = asyncio.create_task(self._engines.run())
        apis = asyncio.create_task(self._apis.run())
        all_alive = await self._wait_for_stop(engines, apis)
        all_answered = await self._stop_apis()
        await self._stop_engines(engines)
        await asyncio.gather(apis, return_exceptions=True)
        for number in (signal.SIGHUP, signal.SIGUSR1):
            # Without a handler of the event loop, which is about to be closed, they would kill.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        return 0 if all_alive and all_answered else 1

    async def _wait_for_stop(self, *supervisions: asyncio.Task[None]) -> bool:
        """Serve until a signal (True), or until a kind of process cannot be kept alive (False)."""
        stop_requested = asyncio.create_task(self._stop_requested.wait())
        ready = asyncio.create_task(self._wait_ready())
        await wait_for_first(stop_requested, *supervisions, ready)
        if ready.done():
            default = next(iter(self._engines.models.values()))
            sys.stdout.write(ready_line(self._urls, default.modality))
            sys.stdout.flush()
            await wait_for_first(stop_requested, *supervisions)
        ready.cancel()
        ended = [supervision for supervision in supervisions if supervision.done()]
        for supervision in ended:
            error = supervision.exception()
            # The message of a failed start explains itself; other errors need their traceback.
            explained = isinstance(error, EngineStartError | ApiStartError)
            log.error("%s", error, exc_info=None if explained else error)
        return not ended

    async def _wait_ready(self) -> None:
        await asyncio.gather(self._engines.wait_ready(), self._apis.wait_serving())

    async def _stop_apis(self) -> bool:
        """Let the API processes answer what they have admitted, and end. Return whether they did.

        None closes its listening sockets before all have answered: until then, whoever accepts a
        connection refuses it with 503.
        """
        log.info("stopping; %d requests are in flight", self._apis.requests)
        self._engines.stop_reloading()
        limit = self._plan.drain + self._plan.orders
        all_answered = await self._apis.drain(limit, self._stop_forced)
        if self._stop_forced.is_set() and not all_answered:
            log.error("%d requests were cut off", self._apis.requests)
        self._listeners.remove_file()
        self._listeners.close()
        self._apis.close(forced=not all_answered)
        seconds = self._plan.forced_send
        if all_answered:
            seconds = self._plan.accept + self._plan.send
        seconds += self._plan.api_end
        ending = asyncio.create_task(self._apis.wait_ended())
        stop_forced = asyncio.create_task(self._stop_forced.wait())
        await wait_for_first(ending, stop_forced, timeout=seconds)
        stop_forced.cancel()
        self._apis.kill()
        await ending
        return all_answered

    async def _stop_engines(self, supervision: asyncio.Task[None]) -> None:
        """Let the engines end; kill what has not when the time is over, or by force."""
        stopping = asyncio.create_task(self._engines.stop())
        stop_forced = asyncio.create_task(self._stop_forced.wait())
        await wait_for_first(stopping, stop_forced, timeout=self._plan.engines)
        self._engines.kill()
        for task in (stopping, stop_forced, supervision):
            task.cancel()
        await asyncio.gather(stopping, stop_forced, supervision, return_exceptions=True)

    def _on_stop(self) -> None:
        """Request a stop; force it at the second signal."""
        if self._stop_requested.is_set():
            self._stop_forced.set()
        self._stop_requested.set()

    def _on_reload(self) -> None:
        log.info("SIGHUP: reloading the catalog")
        self._engines.reload()

    def _on_restart(self) -> None:
        restart = asyncio.get_running_loop().create_task(self._apis.restart())
        self._restarts.add(restart)
        restart.add_done_callback(self._restarts.discard)


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


async def wait_for_first(*tasks: asyncio.Future[Any], timeout: float | None = None) -> None:
    """Wait until the first of ``tasks`` is done, for ``timeout`` seconds at most."""
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
