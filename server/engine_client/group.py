"""The engines, one per device: their start, supervision, models and stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from server.engine_client.health import HealthPolicy
from server.engine_client.process import MODULE, EngineProcess
from server.engine_client.served_models import combine, device_independent
from server.engine_client.slots import SlotAllocator
from server.engine_client.supervisor import Supervisor
from server.errors import EngineStartError
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import Accelerations, BatchDone, ModelInfo, Ready

log = logging.getLogger("tome.engine")


class EngineGroup:
    """One engine per device, with slots that all engines share.

    The group is made before the event loop runs: the models load while the API is being imported.

    Args:
        configs: one per engine; they differ in their devices only.
        on_batch: called in the event loop with every completed batch.
        on_models: called with the served models whenever an engine has become ready.
        on_restart: called with the name of an engine whenever it gets a new process.
        module: the Python module that the engine processes run.

    Attributes:
        supervisors: one per engine.
        slots: usable when the first engine is ready.
        models: the served models, by name; they stay while engines restart.
        before_jobs: awaited with the models of an engine before its first job, while no engine is
            ready yet or others serve.
    """

    def __init__(
        self,
        configs: Sequence[EngineConfig],
        policy: HealthPolicy,
        on_batch: Callable[[BatchDone], None],
        on_models: Callable[[tuple[ModelInfo, ...]], None],
        on_restart: Callable[[str], None],
        module: str = MODULE,
    ) -> None:
        self._on_batch = on_batch
        self._on_models = on_models
        self._module = module
        self._slot_bytes = 0
        self._was_ready = asyncio.Event()
        self.slots = SlotAllocator(configs[0].slots)
        self.models: dict[str, ModelInfo] = {}
        self.before_jobs: Callable[[Iterable[ModelInfo]], Awaitable[None]] | None = None
        self.supervisors = [
            Supervisor(
                name=str(index),
                launch=partial(self._launch, config),
                on_ready=self._on_ready,
                on_restart=on_restart,
                policy=policy,
            )
            for index, config in enumerate(configs)
        ]

    @property
    def ready(self) -> bool:
        """Whether at least one engine accepts jobs."""
        return any(supervisor.process.ready for supervisor in self.supervisors)

    @property
    def given_up(self) -> bool:
        """Whether all engines are given up, so that none will ever accept jobs again."""
        return all(supervisor.given_up for supervisor in self.supervisors)

    @property
    def queued(self) -> int:
        """Number of jobs that are submitted and not answered."""
        return sum(supervisor.process.queued for supervisor in self.supervisors)

    async def run(self) -> None:
        """Keep all engines alive until `stop`; continue without an engine that is given up.

        Raises:
            EngineStartError: all engines are given up; or an engine reports a mistake in the
                settings, of which the operator should know.
        """
        tasks = {
            asyncio.create_task(supervisor.run()): supervisor for supervisor in self.supervisors
        }
        try:
            while tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    supervisor = tasks.pop(task)
                    error = task.exception()
                    if error is not None:
                        self._give_up(supervisor, error, is_last=not tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def wait_ready(self) -> None:
        """Return when an engine has become ready for the first time."""
        await self._was_ready.wait()

    async def stop(self) -> None:
        """Let all engines complete their jobs, and wait until they have ended."""
        await asyncio.gather(*(supervisor.stop() for supervisor in self.supervisors))

    def kill(self, seconds: float = 0.0) -> None:
        """Kill all engine processes at once, and block for ``seconds`` at most until they end."""
        for supervisor in self.supervisors:
            supervisor.kill()
        end = time.monotonic() + seconds
        for supervisor in self.supervisors:
            supervisor.process.wait(max(0.0, end - time.monotonic()))

    def _launch(self, config: EngineConfig, accelerations: Accelerations) -> EngineProcess:
        return EngineProcess(
            replace(config, accelerations=accelerations),
            memory=self.slots.descriptor,
            on_batch=self._on_batch,
            on_free=self.slots.release,
            module=self._module,
        )

    def _give_up(self, supervisor: Supervisor, error: BaseException, *, is_last: bool) -> None:
        """Continue without an engine that ended with ``error``, or raise the error."""
        if is_last or not isinstance(error, EngineStartError):
            raise error
        if supervisor.is_configuration_error(error):
            raise error
        log.critical(
            "engine %s: %s; it is given up, the other engines continue",
            supervisor.name,
            error,
        )
        self._update_models()

    async def _on_ready(self, supervisor: Supervisor, ready: Ready) -> int:
        """Register the models of an engine that has become ready; return the bytes of a slot."""
        if self.before_jobs is not None:
            await self.before_jobs(ready.models)
        if not self.models:
            self._slot_bytes = ready.slot_bytes
            self.slots.map(ready.slot_bytes)
        else:
            before = device_independent(tuple(self.models.values()))
            if device_independent(ready.models) != before:
                raise EngineStartError(
                    "the models have changed since the server started; restart the server"
                )
        supervisor.models = ready.models
        self._update_models()
        self._was_ready.set()
        return self._slot_bytes

    def _update_models(self) -> None:
        """Combine the models of all engines that are not given up, and report them."""
        reports = [
            supervisor.models
            for supervisor in self.supervisors
            if supervisor.models and not supervisor.given_up
        ]
        self.models = {model.name: model for model in combine(reports)}
        self._on_models(tuple(self.models.values()))
