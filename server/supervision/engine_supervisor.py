"""The supervisor of one engine: start, health checks, restart with back-off, giving up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from server.errors import EngineStartError
from server.ipc.board import EngineRow
from server.ipc.messages import Accelerations, ModelInfo, Ready
from server.ipc.packing import BadMessage
from server.ipc.shared_memory import SlotRegion
from server.latency.cost import CostModel
from server.supervision.child import start_when_possible
from server.supervision.engine_process import EngineProcess
from server.supervision.health import HealthPolicy, backoff
from server.supervision.watching import wait_until_unhealthy

log = logging.getLogger("tome.engine")

# Load time that Retry-After assumes until a start has been measured: about that of a small model
# on a CPU. Too short a value costs clients one more retry.
_FIRST_LOAD_SECONDS = 5.0


class EngineSupervisor:
    """One engine, across all its processes.

    Args:
        name: name of the engine, in logs and metrics.
        launch: starts a process that may use the given accelerations; returns at once.
        row: of the engine on the board.
        on_loaded: called when the models of a process are loaded; returns where its slots are.
        on_ready: called when the process accepts jobs.
        on_ended: called when a process has ended, ready or not.
        on_restart: called with the engine's name whenever it gets a new process.

    Attributes:
        process: the current process.
        models: the models that the engine serves, or served last; empty until it was ready once.
        cost_models: the cost model of each model, by name, as they were at the last start.
        given_up: whether the engine will not be started again.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[Accelerations], EngineProcess],
        row: EngineRow,
        on_loaded: Callable[[EngineSupervisor, Ready], SlotRegion],
        on_ready: Callable[[EngineSupervisor], None],
        on_ended: Callable[[EngineSupervisor], None],
        on_restart: Callable[[str], None],
        policy: HealthPolicy,
    ) -> None:
        self.name = name
        self._launch = launch
        self._row = row
        self._on_loaded = on_loaded
        self._on_ready = on_ready
        self._on_ended = on_ended
        self._on_restart = on_restart
        self._policy = policy
        self._stopping = False
        self._accelerations = Accelerations()
        self._launched = 0.0
        self._load_seconds = _FIRST_LOAD_SECONDS
        self.models: tuple[ModelInfo, ...] = ()
        self.cost_models: dict[str, CostModel] = {}
        self.given_up = False
        self.process = self._launch_process()

    @property
    def ready(self) -> bool:
        """Whether the current process accepts jobs."""
        return self.process.ready

    async def run(self) -> None:
        """Keep the engine alive until `stop`.

        An engine that was ready and is lost is restarted at once, as often as it happens.

        Raises:
            EngineStartError: the engine is given up, because of a mistake in the settings, or after
                too many consecutive failed starts.
        """
        try:
            await self._keep_alive()
        except Exception:
            self.given_up = True
            raise

    async def _keep_alive(self) -> None:
        failed_starts = 0
        while True:
            failure = await self._run_process()
            code = await self.process.exit_code()
            await self.process.close()
            self._on_ended(self)
            if self._stopping:
                return
            if failure is None or self._reduce_accelerations(failure):
                failed_starts = 0
            else:
                failed_starts += 1
                if (
                    self.is_configuration_error(failure)
                    or failed_starts == self._policy.failed_starts
                ):
                    raise failure
            reason = failure or f"the process was lost (exit code {code})"
            wait = backoff(failed_starts)
            log.error("engine %s: %s; restart in %g s", self.name, reason, wait)
            await asyncio.sleep(wait)
            process = await start_when_possible(
                f"engine {self.name}", self._launch_process, is_stopping=lambda: self._stopping
            )
            if process is None:
                return
            self.process = process
            self._on_restart(self.name)

    async def _run_process(self) -> EngineStartError | None:
        """Serve with the current process until it is lost; return the error if it cannot start."""
        try:
            await self._start()
            await self._serve()
        except EngineStartError as error:
            return error
        return None

    def is_configuration_error(self, error: EngineStartError) -> bool:
        """Return whether ``error`` would recur at every start: the configuration is wrong.

        The engine itself has explained the error, and it was never ready.
        """
        return error.explained and not self.models

    def _reduce_accelerations(self, error: EngineStartError) -> bool:
        """Use only the accelerations that ``error`` leaves; return whether these are fewer."""
        if error.safer is None:
            return False
        before = self._accelerations
        self._accelerations = before.intersection(error.safer)
        return self._accelerations != before

    async def stop(self) -> None:
        """Let the engine complete its jobs, and wait until it has ended. Do not restart it."""
        self._stopping = True
        await self.process.stop()

    def kill(self) -> None:
        """Kill the process at once. Do not restart it."""
        self._stopping = True
        self.process.kill()

    def _launch_process(self) -> EngineProcess:
        self._launched = time.monotonic()
        self._row.expect_ready(self._launched + self._load_seconds)
        return self._launch(self._accelerations)

    async def _start(self) -> None:
        """Wait until the current process is ready, and let it accept jobs."""
        ready = await self.process.wait_until_loaded(self._policy.start_timeout)
        region = self._on_loaded(self, ready)
        self._load_seconds = time.monotonic() - self._launched
        log.info(
            "engine %s is ready, %.1f s after the start of its process",
            self.name,
            self._load_seconds,
            extra={"seconds": round(self._load_seconds, 3)},
        )
        self.process.accept_jobs(region)
        self._on_ready(self)

    async def _serve(self) -> None:
        """Watch the process until it is lost or must be killed."""
        receiving = asyncio.create_task(self.process.receive())
        watching = asyncio.create_task(
            wait_until_unhealthy(
                f"engine {self.name}", lambda: self.process.heartbeat, self._policy
            )
        )
        tasks = (receiving, watching)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._row.set_ready(False)
            self._row.expect_ready(time.monotonic() + self._load_seconds)
            self.process.kill()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            if isinstance(error, BadMessage):
                log.error("engine %s: %s", self.name, error)
            elif error is not None:
                log.error("engine %s: the supervision failed", self.name, exc_info=error)
