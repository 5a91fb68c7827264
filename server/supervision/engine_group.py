"""The engines of one generation, one per device: their start, supervision, models and stop."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from server.engine_client.served_models import combine, device_independent
from server.errors import EngineStartError
from server.ipc.control import EngineEnded, EngineGivenUp, EngineUp, ReloadEnded, Serving
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import Accelerations, ModelInfo, Ready
from server.ipc.reload import ReloadStatus
from server.ipc.shared_memory import SlotRegion
from server.supervision.engine_process import MODULE, EngineProcess
from server.supervision.engine_supervisor import EngineSupervisor
from server.supervision.health import HealthPolicy
from server.supervision.shared import SharedMemory

log = logging.getLogger("tome.engine")

EngineNews = EngineUp | EngineEnded | EngineGivenUp | Serving | ReloadStatus | ReloadEnded


class Subscriber(Protocol):
    """An API process, as the engines know it."""

    def tell(self, news: EngineNews, connection: socket.socket | None = None) -> None:
        """Report what has happened to an engine, or to the catalog.

        Args:
            connection: with `EngineUp`, the channel to the engine. It belongs to the subscriber.
        """
        ...


class EngineGroup:
    """One engine per device, and the API processes that send them jobs.

    The group is made before the event loop runs: the models load meanwhile. The first generation
    goes on without an engine that cannot start; another one serves with all of them or not at all.

    Args:
        configs: one per engine; they differ in their devices only. There is at least one.
        shared: the memory that all processes share.
        on_restart: called with the name of an engine whenever it gets a new process.
        module: the Python module that the engine processes run.

    Attributes:
        generation: number of the generation.
        engines: indices of the engines, as everywhere beyond this process.
        supervisors: one per engine.
        must_all_start: whether an engine that cannot start is the end of all.
        region: where its slots are; None until the first of its engines has loaded the models.
        models: the served models, by name; they stay while engines restart.
    """

    def __init__(
        self,
        configs: Sequence[EngineConfig],
        policy: HealthPolicy,
        shared: SharedMemory,
        on_restart: Callable[[str], None],
        module: str = MODULE,
    ) -> None:
        self._shared = shared
        self._module = module
        self.generation = configs[0].generation
        self.engines = tuple(config.engine for config in configs)
        self.must_all_start = self.generation > 0
        self.region: SlotRegion | None = None
        self._refused: asyncio.Future[None] | None = None
        self._subscribers: dict[int, Subscriber] = {}  # by index of the API process
        # By engine that is ready: API processes that have not confirmed yet that they can use it.
        self._unconfirmed: dict[int, set[int]] = {}
        self._was_ready = asyncio.Event()
        self._all_ready = asyncio.Event()
        self.models: dict[str, ModelInfo] = {}
        self.supervisors = [
            EngineSupervisor(
                name=str(config.engine % config.board.engines),
                launch=partial(self._launch, config),
                row=shared.board.engines[config.engine],
                on_loaded=self._on_loaded,
                on_ready=self._on_ready,
                on_ended=self._on_ended,
                on_restart=on_restart,
                policy=policy,
            )
            for config in configs
        ]

    @property
    def given_up(self) -> bool:
        """Whether all engines are given up, so that none will ever accept jobs again."""
        return all(supervisor.given_up for supervisor in self.supervisors)

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
        """Return when all API processes could use an engine for the first time."""
        await self._was_ready.wait()

    async def wait_all_ready(self) -> None:
        """Return when all API processes could use all engines.

        Raises:
            EngineStartError: an API process cannot serve the models.
        """
        self._refused = asyncio.get_running_loop().create_future()
        ready = asyncio.create_task(self._all_ready.wait())
        try:
            await asyncio.wait((ready, self._refused), return_when=asyncio.FIRST_COMPLETED)
            if self._refused.done():
                self._refused.result()  # raises
        finally:
            ready.cancel()
            self._refused.cancel()

    def refuse(self, engine: int, reason: str) -> None:
        """Let `wait_all_ready` fail: an API process cannot serve the models of ``engine``."""
        if self._refused is not None and not self._refused.done():
            self._refused.set_exception(EngineStartError(reason, explained=True))

    def subscribe(self, worker: int, subscriber: Subscriber) -> None:
        """Tell an API process about all engines, and attach it to those that are ready, for good.

        Args:
            worker: index of the API process, which must not be subscribed.
        """
        self._subscribers[worker] = subscriber
        for engine, supervisor in self._supervisors():
            if supervisor.given_up:
                subscriber.tell(EngineGivenUp(engine))
            elif supervisor.ready:
                self._attach(engine, worker)

    async def unsubscribe(self, worker: int) -> None:
        """Forget an API process that has ended; return when no engine reads a slot of it."""
        self._subscribers.pop(worker, None)
        for engine in list(self._unconfirmed):
            self.confirm(engine, worker)
        await asyncio.gather(
            *(supervisor.process.detach(worker) for supervisor in self.supervisors)
        )

    def confirm(self, engine: int, worker: int) -> None:
        """Note that an API process can use ``engine``, or has ended."""
        waiting = self._unconfirmed.get(engine)
        if waiting is None:
            return
        waiting.discard(worker)
        self._set_ready_if_confirmed(engine)

    def end_unusable(self, engine: int, pid: int) -> None:
        """Kill the process ``pid`` of ``engine`` if it is the current one; another follows."""
        process = self._supervisor(engine).process
        if process.pid == pid:
            process.kill()

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

    async def close(self) -> None:
        """Wait until all processes have ended, after `kill`, and say so to the API processes.

        Raises:
            EngineStartError: the kernel cannot end one of them.
        """
        for supervisor in self.supervisors:
            await supervisor.process.close()
            self._on_ended(supervisor)

    def _launch(self, config: EngineConfig, accelerations: Accelerations) -> EngineProcess:
        config = replace(config, accelerations=accelerations)
        return EngineProcess(config, self._shared, module=self._module)

    def _give_up(
        self, supervisor: EngineSupervisor, error: BaseException, *, is_last: bool
    ) -> None:
        """Continue without an engine that ended with ``error``, or raise the error."""
        self._tell_all(EngineGivenUp(self._engine(supervisor)))
        if is_last or self.must_all_start or not isinstance(error, EngineStartError):
            raise error
        if supervisor.is_configuration_error(error):
            raise error
        log.critical(
            "engine %s: %s; it is given up, the other engines continue",
            supervisor.name,
            error,
        )
        self._update_models()

    def _on_loaded(self, supervisor: EngineSupervisor, ready: Ready) -> SlotRegion:
        """Register the models of an engine that are loaded; return where its slots are."""
        if self.region is None:
            self.region = self._shared.regions.fit(ready.slot_bytes)
        elif device_independent(ready.models) != device_independent(tuple(self.models.values())):
            raise EngineStartError(
                "the files of the models have changed since they were loaded; reload the catalog"
            )
        supervisor.models = ready.models
        supervisor.cost_models = ready.cost_models
        self._update_models()
        return self.region

    def _on_ready(self, supervisor: EngineSupervisor) -> None:
        """Attach all API processes to an engine that has become ready."""
        engine = self._engine(supervisor)
        self._unconfirmed[engine] = set()
        for worker in self._subscribers:
            self._attach(engine, worker)
        self._set_ready_if_confirmed(engine)

    def _on_ended(self, supervisor: EngineSupervisor) -> None:
        engine = self._engine(supervisor)
        self._unconfirmed.pop(engine, None)
        self._tell_all(EngineEnded(engine))

    def _attach(self, engine: int, worker: int) -> None:
        supervisor = self._supervisor(engine)
        assert self.region is not None
        connection = supervisor.process.attach(worker)
        self._unconfirmed.setdefault(engine, set()).add(worker)
        news = EngineUp(
            engine,
            supervisor.process.pid,
            supervisor.models,
            self.region.slot_bytes,
            supervisor.cost_models,
            self.generation,
            self.region.offset,
        )
        self._subscribers[worker].tell(news, connection)

    def _set_ready_if_confirmed(self, engine: int) -> None:
        """Show on the board that an engine is ready, once no API process would refuse for it."""
        if self._unconfirmed[engine] or not self._subscribers:
            return
        rows = self._shared.board.engines
        rows[engine].set_ready(True)
        self._was_ready.set()
        if all(rows[each].ready for each in self.engines):
            self._all_ready.set()

    def _supervisors(self) -> Iterable[tuple[int, EngineSupervisor]]:
        return zip(self.engines, self.supervisors, strict=True)

    def _supervisor(self, engine: int) -> EngineSupervisor:
        return self.supervisors[self.engines.index(engine)]

    def _engine(self, supervisor: EngineSupervisor) -> int:
        return self.engines[self.supervisors.index(supervisor)]

    def _tell_all(self, news: EngineNews) -> None:
        for subscriber in self._subscribers.values():
            subscriber.tell(news)

    def _update_models(self) -> None:
        """Combine the models of all engines that are not given up."""
        reports = [
            supervisor.models
            for supervisor in self.supervisors
            if supervisor.models and not supervisor.given_up
        ]
        self.models = {model.name: model for model in combine(reports)}
