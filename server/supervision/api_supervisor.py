"""The supervisor of one API process: start, health checks, restart, giving up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from server.errors import ApiStartError
from server.ipc.packing import BadMessage
from server.supervision.api_process import ApiProcess
from server.supervision.child import start_when_possible
from server.supervision.health import WATCH_SECONDS, HealthPolicy, backoff
from server.supervision.watching import wait_until_unhealthy

log = logging.getLogger("tome.server")


class ApiSupervisor:
    """One API process, and those that replace it.

    Args:
        name: of the process, in logs.
        launch: starts a process; returns at once.
        on_started: called with a process that can accept connections, to tell it of the engines.
        on_ended: awaited when a process has ended, to take from the engines what it held.
        on_restart: called whenever another process has replaced one.

    Attributes:
        process: the current process.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[], ApiProcess],
        on_started: Callable[[ApiProcess], None],
        on_ended: Callable[[], Awaitable[None]],
        on_restart: Callable[[], None],
        policy: HealthPolicy,
    ) -> None:
        self._name = name
        self._launch = launch
        self._on_started = on_started
        self._on_ended = on_ended
        self._on_restart = on_restart
        self._policy = policy
        self._stopping = False
        self._serving = asyncio.Event()
        self.process = launch()

    async def wait_serving(self) -> None:
        """Wait until the current process accepts connections."""
        await self._serving.wait()

    async def run(self) -> None:
        """Keep the process alive until `stop`. A process that has served is replaced at once.

        Raises:
            ApiStartError: no process can serve: one has said so, or too many starts in a row have
                failed.
        """
        failed_starts = 0
        while True:
            failure = await self._run_process()
            code = await self.process.end()
            await self._on_ended()
            if self._stopping:
                return
            if self.process.failure is not None:
                raise ApiStartError(self.process.failure)
            failed_starts = 0 if failure is None else failed_starts + 1
            if failure is not None and failed_starts == self._policy.failed_starts:
                raise failure
            self._log_end(failure, code, backoff(failed_starts))
            self._serving.clear()
            await asyncio.sleep(backoff(failed_starts))
            process = await start_when_possible(
                self._name, self._launch, is_stopping=lambda: self._stopping
            )
            if process is None:
                return
            self.process = process
            self._on_restart()

    def _log_end(self, failure: ApiStartError | None, code: int, wait: float) -> None:
        if failure is None and code == 0:
            return log.info("%s has retired; it is replaced", self._name)
        reason = failure or f"the process was lost (exit code {code})"
        log.error("%s: %s; restart in %g s", self._name, reason, wait)

    async def _run_process(self) -> ApiStartError | None:
        """Watch the current process until it ends; return the error if it cannot start."""
        try:
            await self.process.wait_until_started(self._policy.start_timeout)
        except ApiStartError as error:
            return error
        self._on_started(self.process)
        watching = [
            asyncio.create_task(self._receive()),
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._let_serve()),
        ]
        try:
            await asyncio.wait(watching[:2], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        return None

    async def _let_serve(self) -> None:
        await self.process.wait_until_attached()
        if not self._stopping:
            self.process.serve()
            self._serving.set()

    async def _receive(self) -> None:
        try:
            await self.process.receive()
        except BadMessage as error:
            log.error("%s: %s", self._name, error)
            self.process.kill()

    async def _watch(self) -> None:
        """Kill the process when it has no heartbeat, and return."""
        await wait_until_unhealthy(self._name, lambda: self.process.heartbeat, self._policy)
        self.process.kill()

    async def retire(self) -> None:
        """Let the process end once its requests have responses; return when it is replaced."""
        retiring = self.process
        self._serving.clear()
        retiring.retire()
        while self.process is retiring and not self._stopping:
            await asyncio.sleep(WATCH_SECONDS)

    def stop(self) -> None:
        """Start no other process any more."""
        self._stopping = True

    def kill(self) -> None:
        """Kill the process at once. Do not restart it."""
        self._stopping = True
        self.process.kill()
