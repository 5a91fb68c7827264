"""The API processes: their start, supervision, rolling restart and stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from server.ipc.api_config import ApiConfig
from server.ipc.control import EngineRefused, Released, ReloadWanted
from server.supervision.api_process import ApiProcess
from server.supervision.api_supervisor import ApiSupervisor
from server.supervision.generations import EngineGenerations, answer_reload
from server.supervision.health import HealthPolicy
from server.supervision.shared import SharedMemory

log = logging.getLogger("tome.server")

# A signal to all processes of the server has reached each of them by then.
_SIGNAL_SECONDS = 0.2


class ApiGroup:
    """All API processes of a server.

    Args:
        config: of the first; the others differ in their index.
        on_restart: called whenever another process has replaced one.
    """

    def __init__(
        self,
        config: ApiConfig,
        policy: HealthPolicy,
        shared: SharedMemory,
        engines: EngineGenerations,
        on_restart: Callable[[], None],
    ) -> None:
        self._config = config
        self._shared = shared
        self._engines = engines
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._restarting = asyncio.Lock()
        self._supervisors = [
            ApiSupervisor(
                f"API process {worker}",
                launch=partial(self._launch, worker),
                on_started=partial(engines.subscribe, worker),
                on_ended=partial(self._on_ended, worker),
                on_restart=on_restart,
                policy=policy,
            )
            for worker in range(config.board.workers)
        ]

    @property
    def requests(self) -> int:
        """Requests in flight."""
        return self._shared.board.requests

    async def run(self) -> None:
        """Keep all processes alive until `drain`.

        Raises:
            ApiStartError: one cannot serve.
        """
        self._tasks = [asyncio.create_task(supervisor.run()) for supervisor in self._supervisors]
        # Of the others each goes on, so that `drain` can let it end.
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in self._tasks:
            if task.done():
                task.result()

    async def wait_ended(self) -> None:
        """Wait until all processes have ended, after `close` or `kill`."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def wait_serving(self) -> None:
        """Wait until all processes accept connections."""
        await asyncio.gather(*(supervisor.wait_serving() for supervisor in self._supervisors))

    async def restart(self) -> None:
        """Replace one process after the other, each when the one before it serves again."""
        if self._restarting.locked():
            return
        async with self._restarting:
            log.info("restarting the API processes, one after the other")
            for supervisor in self._supervisors:
                await supervisor.wait_serving()
                if self._stopping:
                    return
                await supervisor.retire()
                await supervisor.wait_serving()
            log.info("all API processes are restarted")

    async def drain(self, seconds: float, forced: asyncio.Event) -> bool:
        """Let all requests in flight end, and return whether every one has its response.

        Args:
            seconds: how long to wait at most.
            forced: ends the wait when it is set.
        """
        self._stopping = True
        processes = []
        for supervisor in self._supervisors:
            supervisor.stop()
            if supervisor.process.served:
                processes.append(supervisor.process)
                supervisor.process.drain()
            else:
                supervisor.kill()  # it has accepted no request
        draining = [asyncio.create_task(process.drained.wait()) for process in processes]
        stop_forced = asyncio.create_task(forced.wait())
        all_drained = asyncio.gather(*draining)
        waiting: tuple[asyncio.Future[Any], ...] = (all_drained, stop_forced)
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        stop_forced.cancel()
        all_drained.cancel()
        await asyncio.gather(all_drained, stop_forced, return_exceptions=True)
        return all(process.all_answered for process in processes)

    def close(self, forced: bool) -> None:
        """Let all processes close their connections and end, so that `run` returns.

        Args:
            forced: without a wait for clients that still read.
        """
        for supervisor in self._supervisors:
            supervisor.process.close(forced)

    def kill(self, seconds: float = 0.0) -> None:
        """Kill all processes at once, and block for ``seconds`` at most until they end."""
        for supervisor in self._supervisors:
            supervisor.kill()
        end = time.monotonic() + seconds
        for supervisor in self._supervisors:
            supervisor.process.wait(max(0.0, end - time.monotonic()))

    def _launch(self, worker: int) -> ApiProcess:
        return ApiProcess(
            replace(self._config, worker=worker),
            self._shared,
            on_attached=lambda engine: self._engines.confirm(engine, worker),
            on_unusable=self._engines.end_unusable,
            on_retire_wanted=lambda: self._retire_soon(worker),
            on_report=partial(self._on_report, worker),
        )

    def _on_report(self, worker: int, report: Released | EngineRefused | ReloadWanted) -> None:
        match report:
            case Released(generation=generation):
                self._engines.release(generation, worker)
            case EngineRefused(engine=engine, reason=reason):
                self._engines.refuse(engine, reason)
            case ReloadWanted(ticket=ticket):
                process = self._supervisors[worker].process
                answer_reload(self._engines, ticket, process)

    def _retire_soon(self, worker: int) -> None:
        """Retire a process that has got a SIGTERM, unless this one gets it as well."""

        def retire() -> None:
            if not self._stopping:
                self._supervisors[worker].process.retire()

        asyncio.get_running_loop().call_later(_SIGNAL_SECONDS, retire)

    async def _on_ended(self, worker: int) -> None:
        """Take back what a process held that has ended: its jobs, and then its slots."""
        await self._engines.unsubscribe(worker)
        self._shared.board.clear_slots(worker)
