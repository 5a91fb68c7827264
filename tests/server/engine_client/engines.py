"""Real engine processes with a tiny model, behind a router."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from server.engine_client.group import EngineGroup
from server.engine_client.health import HealthPolicy
from server.engine_client.process import MODULE, Result
from server.engine_client.routing import Router
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import BatchDone, OutputKind
from tome_core.schedule import Schedule

SIZE = (3, 32, 32)
POLICY = HealthPolicy(
    start_timeout=60, heartbeat_timeout=8
)  # a busy machine may delay a healthy process


def configuration(folder: Path, slots: int = 8, **changes: object) -> EngineConfig:
    values: dict[str, object] = {
        "catalog_path": folder / "models.toml",
        "models": (),
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "levels": (0, 4),
        "max_batch": 4,
        "max_batch_work": 0,
        "slots": slots,
        "target_seconds": 1.0,
        "log_level": "warning",
    }
    return EngineConfig(**(values | changes))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(
    configs: Sequence[EngineConfig],
    *,
    on_batch: Callable[[BatchDone], None] = lambda batch: None,
    on_restart: Callable[[str], None] = lambda name: None,
    module: str = MODULE,
    policy: HealthPolicy = POLICY,
) -> AsyncIterator[Router]:
    """A router to engines that are all ready; in the end slots are free, and no process is left."""
    engines = EngineGroup(configs, policy, on_batch, lambda models: None, on_restart, module)
    supervision = asyncio.create_task(engines.run())
    try:
        await until(
            lambda: supervision.done() or all(engine.is_ready() for engine in engines.supervisors)
        )
        if supervision.done():
            await supervision
        yield Router(engines, configs[0].target_seconds)
        assert (engines.slots.used, engines.queued) == (0, 0)
        await asyncio.wait_for(engines.stop(), 10)
        await asyncio.wait_for(supervision, 10)
    finally:
        supervision.cancel()
        await asyncio.gather(supervision, return_exceptions=True)
        for engine in engines.supervisors:
            await engine.process.close()


@contextlib.contextmanager
def shared(*configs: EngineConfig, **options: Any) -> Iterator[tuple[asyncio.Runner, Router]]:
    """`running` for several tests, which all use the event loop of the same ``runner``."""
    with asyncio.Runner() as runner:
        context = running(configs, **options)
        yield runner, runner.run(context.__aenter__())
        runner.run(context.__aexit__(None, None, None))


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
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
        return await lease.run(model, [Schedule.constant(r)], top_k, deadline, output_kind)
