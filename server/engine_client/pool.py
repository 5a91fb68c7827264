"""All engines, and the slots that they share: what the API works with."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from server.engine_client.health import HealthPolicy
from server.engine_client.lease import Lease
from server.engine_client.process import MODULE, EngineProcess, Result
from server.engine_client.served_models import identities, merge
from server.engine_client.supervisor import Supervisor
from server.errors import EngineLost, EngineStartError, Overloaded
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import Accelerations, BatchDone, Job, ModelInfo, OutputKind, Ready
from server.ipc.shared_memory import Slots, create_memory
from server.latency.queueing import WorkEstimate, retry_after
from tome_core.schedule import Schedule

log = logging.getLogger("tome.engine")

_KILL_SECONDS = 5.0
_RETRY_SECONDS = 0.1  # for which a `Retry-After`, in whole seconds, holds


class EnginePool:
    """One engine per device. Made before the event loop runs, so that models load while the API imports what it needs.

    Args:
        configs: of each engine, different in their devices at most.
        on_batch: called with every batch's numbers, in the event loop.
        on_models: called whenever an engine gets ready, with what is served then.
        on_restart: called with an engine's name whenever a process of it takes the place of
            another.
        module: what the engine processes run.

    Attributes:
        models: what is served, by name; still there while engines are started again.
        slots: shared by all engines; there once one of them was ready.
    """

    def __init__(
        self,
        configs: Sequence[EngineConfig],
        patience: HealthPolicy,
        on_batch: Callable[[BatchDone], None],
        on_models: Callable[[tuple[ModelInfo, ...]], None],
        on_restart: Callable[[str], None],
        module: str = MODULE,
    ) -> None:
        self._on_models = on_models
        self._memory = create_memory()
        self._slot_bytes = 0
        self._count = configs[0].slots
        self._target = configs[0].target_seconds
        self._free = list(range(self._count))
        self._decoding: dict[int, WorkEstimate] = {}  # by slot
        self._retry = 0
        self._retry_known = 0.0  # until when it holds
        self._ids = itertools.count(1)
        self._was_ready = asyncio.Event()
        self.slots: Slots
        self.models: dict[str, ModelInfo] = {}

        def launch(config: EngineConfig, accelerations: Accelerations) -> EngineProcess:
            config = replace(config, accelerations=accelerations)
            return EngineProcess(config, self._memory, on_batch, self._free.append, module)

        self.engines = [
            Supervisor(str(index), partial(launch, config), self._on_ready, on_restart, patience)
            for index, config in enumerate(configs)
        ]

    @property
    def ready(self) -> bool:
        """Whether at least one engine takes jobs."""
        return any(engine.client.ready for engine in self.engines)

    @property
    def given_up(self) -> bool:
        """Whether no engine will ever take jobs again."""
        return all(engine.given_up for engine in self.engines)

    @property
    def queued(self) -> int:
        """Jobs that no engine has answered yet."""
        return sum(engine.client.queued for engine in self.engines)

    @property
    def held(self) -> int:
        """Slots that are not free."""
        return self._count - len(self._free)

    def retry_after(self) -> int:
        """Seconds after which it makes sense to come back: what is queued drained, or an engine started again."""
        if not self.ready:
            return retry_after(min(engine.ready_in for engine in self.engines))
        now = time.monotonic()
        if now > self._retry_known:
            # Told to each request that is refused, while all that is queued has to be looked at to
            # find it out.
            self._retry_known = now + _RETRY_SECONDS
            self._retry = retry_after(
                min(client.busy_seconds(ahead) for client, ahead in self._ahead(float("inf")))
            )
        return self._retry

    def claim(
        self, model: str, choices: Sequence[Schedule], deadline: float | None
    ) -> WorkEstimate:
        """What an image needs of an engine that runs it under the last, the strongest, of ``choices``."""
        due = time.monotonic() + self._target if deadline is None else deadline
        return WorkEstimate(model, self.models[model].geometry.load(choices[-1]), due)

    def predict(self, claim: WorkEstimate) -> float:
        """Seconds until an engine would have done one more image, after all that are due before, decoded or not.

        All are taken at their strongest schedules.
        """
        waits = [client.answer_seconds(claim, ahead) for client, ahead in self._ahead(claim.due)]
        return min(waits, default=0.0)

    def check_room(self) -> None:
        """Raises `Overloaded` if no slot is free, or no engine is ready."""
        if not self.ready:
            raise Overloaded(
                "the models are not loaded", retry_after=self.retry_after(), reason="not-ready"
            )
        if not self._free:
            text = f"{self._count} images are waiting already"
            raise Overloaded(text, retry_after=self.retry_after(), reason="queue-full")

    @contextlib.contextmanager
    def lease(self, claim: WorkEstimate | None = None) -> Iterator[Lease]:
        """Hold one slot. It is free again on leaving, or, once its job was submitted, when the engine answers or ends.

        Args:
            claim: what the image in it will need; counted as waiting from now on.

        Raises:
            Overloaded: no slot is free, or no engine is ready.
        """
        self.check_room()
        slot = self._free.pop()
        lease = Lease(self.slots, slot, self.submit)
        if claim is not None:
            self._decoding[slot] = claim
        try:
            yield lease
        finally:
            if not lease.submitted:
                self._decoding.pop(slot, None)
                self._free.append(slot)

    def submit(
        self,
        slot: int,
        model: str,
        choices: Sequence[Schedule],
        top_k: int,
        deadline: float | None,
        want: OutputKind,
        normalised: bool,
    ) -> asyncio.Future[Result]:
        """Hand ``slot`` and the image in it to the engine with the least to do. Cancelling the future cancels the job.

        Raises:
            EngineLost: there is no engine now; the slot is still the caller's.
        """
        clients = self._ready_clients()
        if not clients:
            raise EngineLost(
                "the model process was lost; please retry", retry_after=self.retry_after()
            )
        job = Job(
            next(self._ids),
            slot,
            model,
            tuple(choices),
            top_k,
            time.monotonic(),
            deadline,
            want,
            normalised,
        )
        client = min(clients, key=lambda client: client.work)
        claim = self._decoding.pop(slot, None) or self.claim(model, choices, deadline)
        return client.submit(job, claim, work_of(self.models[model], choices[0]))

    async def run(self) -> None:
        """Keep all engines alive until `stop`. One that cannot be kept is given up, and the others go on.

        Raises:
            EngineStartError: none is left; or one of them never can start, by its own words, which
                is a mistake in the settings that should not go unnoticed.
        """
        tasks = {asyncio.create_task(engine.run()): engine for engine in self.engines}
        try:
            while tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    engine = tasks.pop(task)
                    error = task.exception()
                    if error is None:
                        continue
                    if (
                        not tasks
                        or not isinstance(error, EngineStartError)
                        or engine.is_mistake(error)
                    ):
                        raise error
                    log.critical(
                        "engine %s: %s; it is given up, the others go on", engine.name, error
                    )
                    self._describe()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def wait_ready(self) -> None:
        """Return when an engine has been ready for the first time."""
        await self._was_ready.wait()

    async def stop(self, timeout: float) -> None:
        """Let the engines finish what they have, and end; kill them after ``timeout`` seconds."""
        await asyncio.gather(*(engine.stop(timeout) for engine in self.engines))

    def kill(self) -> None:
        """End all processes at once, blocking until they are gone."""
        for engine in self.engines:
            engine.kill()
        for engine in self.engines:
            engine.client.wait(_KILL_SECONDS)

    def _ready_clients(self) -> list[EngineProcess]:
        return [engine.client for engine in self.engines if engine.client.ready]

    def _ahead(self, due: float) -> list[tuple[EngineProcess, list[WorkEstimate]]]:
        """What each engine that is ready will do before something due at ``due``; each its part of what is decoded."""
        clients = self._ready_clients()
        decoding = list(self._decoding.values())
        return [
            (
                client,
                [
                    one
                    for one in (*client.claims(), *decoding[index :: len(clients)])
                    if one.due <= due
                ],
            )
            for index, client in enumerate(clients)
        ]

    def _on_ready(self, engine: Supervisor, ready: Ready) -> int:
        if not self.models:
            self._slot_bytes = ready.slot_bytes
            self.slots = Slots(self._memory, self._count, ready.slot_bytes, create=True)
        elif identities(ready.models) != identities(tuple(self.models.values())):
            raise EngineStartError(
                "the models have changed since the server started; start it anew"
            )
        engine.models = ready.models
        self._describe()
        self._was_ready.set()
        return self._slot_bytes

    def _describe(self) -> None:
        described = [
            engine.models for engine in self.engines if engine.models and not engine.given_up
        ]
        self.models = {model.name: model for model in merge(described)}
        self._on_models(tuple(self.models.values()))


def work_of(model: ModelInfo, schedule: Schedule) -> int:
    """What a job costs, for comparing engines: tokens over all blocks, by which nearly all of a pass is measured."""
    return sum(schedule.tokens(model.depth, model.tokens, model.prefix)[:-1])
