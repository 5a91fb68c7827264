"""Real engine processes with a tiny model, behind a router."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from server.asgi import LocalSubscriber
from server.engine_client.engines import Engines
from server.engine_client.link import Result
from server.engine_client.reloads import Reloads
from server.engine_client.routing import Router
from server.ipc.board import BoardSize
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import BatchDone, OutputKind
from server.supervision.engine_group import EngineGroup
from server.supervision.engine_process import MODULE
from server.supervision.health import HealthPolicy
from server.supervision.shared import SharedMemory
from tests.server.engine import processes
from tests.server.engine_client.links import observe_batches
from tome_core.schedule import Schedule

SIZE = (3, 32, 32)
POLICY = HealthPolicy(
    start_timeout=120, heartbeat_timeout=8
)  # a busy machine may delay a healthy process


def configuration(folder: Path, slots: int = 8, **changes: object) -> EngineConfig:
    size = BoardSize(engines=1, workers=1, slots=slots)
    return processes.configuration(folder, board=size, **changes)


class GroupRouter(Router):
    """A router to the engines of ``group``, which belong to this process."""

    def __init__(self, engines: Engines, target_seconds: float, group: EngineGroup) -> None:
        super().__init__(engines, target_seconds)
        self.group = group

    @property
    def all_ready(self) -> bool:
        rows = [self.engines.board.engines[engine] for engine in self.group.engines]
        return len(self.engines.links) == len(rows) and all(row.ready for row in rows)


@contextlib.asynccontextmanager
async def running(
    configs: Sequence[EngineConfig],
    *,
    on_batch: Callable[[BatchDone], None] | None = None,
    on_restart: Callable[[str], None] = lambda name: None,
    module: str = MODULE,
    policy: HealthPolicy = POLICY,
) -> AsyncIterator[GroupRouter]:
    """A router to engines that are all ready; in the end slots are free, and no process is left."""
    size = replace(configs[0].board, engines=len(configs))
    configs = [replace(config, engine=engine, board=size) for engine, config in enumerate(configs)]
    shared = SharedMemory.create(size)
    group = EngineGroup(configs, policy, shared, on_restart, module)
    engines = Engines(
        shared.board, size, shared.slots, 0, configs[0].max_batch, on_models=lambda models: None
    )
    group.subscribe(0, LocalSubscriber(engines, group, Reloads()))
    router = GroupRouter(engines, configs[0].target_seconds, group)
    if on_batch is not None:
        observe_batches(router, on_batch)
    supervision = asyncio.create_task(group.run())
    try:
        await until(lambda: supervision.done() or router.all_ready)
        if supervision.done():
            await supervision
        yield router
        assert (engines.slots.used, engines.queued) == (0, 0)
        engines.close()
        await asyncio.wait_for(group.stop(), 30)
        await asyncio.wait_for(supervision, 30)
    finally:
        supervision.cancel()
        await asyncio.gather(supervision, return_exceptions=True)
        for engine in group.supervisors:
            await engine.process.close()
        shared.close()


@contextlib.contextmanager
def shared(*configs: EngineConfig, **options: Any) -> Iterator[tuple[asyncio.Runner, GroupRouter]]:
    """`running` for several tests, which all use the event loop of the same ``runner``."""
    with asyncio.Runner() as runner:
        context = running(configs, **options)
        yield runner, runner.run(context.__aenter__())
        runner.run(context.__aexit__(None, None, None))


async def until(condition: Callable[[], bool], seconds: float = 180) -> None:
    """Wait until ``condition()`` is true; an engine may start three times until then."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def classify(
    router: Router,
    pixels: np.ndarray,
    r: int,
    deadline: float | None = None,
    output_kind: OutputKind = "classes",
    model: str = "tiny",
) -> Result:
    with router.lease() as lease:
        lease.write(pixels)
        top_k = 3 if output_kind == "classes" else 0
        return await lease.submit(model, [Schedule.constant(r)], top_k, deadline, output_kind)
