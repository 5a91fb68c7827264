"""Keeps one engine alive: starts it, watches it, starts it again, and gives it up in the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from server.engine_client.health import (
    WATCH_SECONDS,
    HealthPolicy,
    Vitals,
    backoff,
    is_hung,
    is_silent,
    observe,
)
from server.engine_client.process import EngineProcess
from server.errors import EngineStartError
from server.ipc.heartbeat import Heartbeat
from server.ipc.messages import Accelerations, ModelInfo, Ready

log = logging.getLogger("tome.engine")

_FIRST_GUESS = 5.0


class Supervisor:
    """One engine, over all the processes that embody it in turn.

    Args:
        name: of the engine, in logs and metrics.
        launch: starts a process with what it may be fast by; cheap.
        on_ready: called with what a process says when its models are loaded; returns the size of a
            slot.
        on_restart: called whenever a process takes the place of another.

    Attributes:
        client: the process now.
        models: what the engine serves, or served last; empty until it was ready once.
        given_up: it will not be started again.
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[Accelerations], EngineProcess],
        on_ready: Callable[[Supervisor, Ready], int],
        on_restart: Callable[[str], None],
        patience: HealthPolicy,
    ) -> None:
        self.name = name
        self._launch = launch
        self._on_ready = on_ready
        self._on_restart = on_restart
        self._patience = patience
        self._stopping = False
        self._accelerations = Accelerations()
        self._launched = 0.0
        self._load_seconds = _FIRST_GUESS
        self.models: tuple[ModelInfo, ...] = ()
        self.given_up = False
        self.client = self._spawn()

    @property
    def ready_in(self) -> float:
        """Seconds until it may be ready, going by the last start; 0 if it is."""
        if self.client.ready:
            return 0.0
        return max(1.0, self._launched + self._load_seconds - time.monotonic())

    def pulse(self) -> Heartbeat:
        """What its process shows of itself now."""
        return self.client.pulse

    def is_ready(self) -> bool:
        """Whether it takes jobs."""
        return self.client.ready

    async def run(self) -> None:
        """Keep the engine alive until `stop`.

        Raises:
            EngineStartError: it is given up, because of a mistake in the settings, or because too
                many starts in a row never got ready. One that got ready and was lost is always
                started again, at once.
        """
        try:
            await self._live()
        except Exception:
            self.given_up = True
            raise

    async def _live(self) -> None:
        failures = 0
        while True:
            failure: EngineStartError | None = None
            try:
                await self._start()
                await self._attend()
            except EngineStartError as error:
                failure = error
            code = await self.client.exit_code()
            await self.client.end()
            if self._stopping:
                return
            counts = failure is not None and not self._become_safer(failure)
            failures = failures + 1 if counts else 0
            if (
                failure
                and counts
                and (self.is_mistake(failure) or failures == self._patience.starts)
            ):
                raise failure
            reason = failure or f"the process was lost (exit code {code})"
            log.error(
                "engine %s: %s; starting it again in %g s", self.name, reason, backoff(failures)
            )
            await asyncio.sleep(backoff(failures))
            if self._stopping:
                return
            self.client = self._spawn()
            self._on_restart(self.name)

    def is_mistake(self, error: EngineStartError) -> bool:
        """Whether ``error`` will come back at every start: the engine explained it, and never was ready."""
        return error.explained and not self.models

    def _become_safer(self, error: EngineStartError) -> bool:
        """Start with fewer accelerations from now on, if ``error`` says that this may help; whether that is new."""
        if error.safer is None:
            return False
        before = self._accelerations
        self._accelerations = self._accelerations.also(error.safer)
        return self._accelerations != before

    async def stop(self, timeout: float) -> None:
        """Let the process finish what it has; kill it after ``timeout`` seconds. No other takes its place."""
        self._stopping = True
        await self.client.stop(timeout)

    def kill(self) -> None:
        """End the process at once. No other takes its place."""
        self._stopping = True
        self.client.kill()

    def _spawn(self) -> EngineProcess:
        self._launched = time.monotonic()
        return self._launch(self._accelerations)

    async def _start(self) -> None:
        ready = await self.client.start(self._patience.start)
        slot_bytes = self._on_ready(self, ready)
        self._load_seconds = time.monotonic() - self._launched
        self.client.begin(slot_bytes)

    async def _attend(self) -> None:
        """Return when the process has ended or must end; whoever waited for it has been told."""
        pump = asyncio.create_task(self.client.pump())
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.wait((pump, watch), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.client.fail_pending(retry_after=self._load_seconds)
            self.client.kill()
            for task in (pump, watch):
                task.cancel()
            await asyncio.gather(pump, watch, return_exceptions=True)
        for task in (pump, watch):
            if not task.cancelled() and (error := task.exception()):
                log.error("engine %s: what attends to it failed", self.name, exc_info=error)

    async def _watch(self) -> None:
        """Return when the process does not run any more, or its forward pass will not end."""
        vitals = Vitals()
        last = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = time.monotonic()
            vitals = observe(vitals, self.client.pulse, now - last)
            last = now
            if is_silent(vitals, self._patience):
                log.error("engine %s: no heartbeat for %.1f s", self.name, vitals.silent)
                return
            if is_hung(vitals, self._patience):
                text = "engine %s: a batch hangs: %.1f s, predicted were %.3f"
                log.error(text, self.name, vitals.busy, vitals.pulse.predicted)
                return
