"""Pools of real engine processes on a tiny model."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from server.engine_client.health import HealthPolicy
from server.engine_client.pool import EnginePool
from server.engine_client.process import MODULE, Result
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import BatchDone, OutputKind
from tome_core.schedule import Schedule

SIZE = (3, 32, 32)
PATIENCE = HealthPolicy(start=60, silent=8)  # a busy machine may stop a healthy process for seconds


def configuration(folder: Path, slots: int = 8, **changes: object) -> EngineConfig:
    values: dict[str, object] = {
        "config": folder / "models.toml",
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
    patience: HealthPolicy = PATIENCE,
) -> AsyncIterator[EnginePool]:
    """A pool whose engines are all ready; on leaving, no slot is held and no process left."""
    pool = EnginePool(configs, patience, on_batch, lambda models: None, on_restart, module)
    attending = asyncio.create_task(pool.run())
    try:
        await until(lambda: attending.done() or all(engine.is_ready() for engine in pool.engines))
        if attending.done():
            await attending
        yield pool
        assert (pool.held, pool.queued) == (0, 0)
        assert {engine.client.work for engine in pool.engines} == {0}
        await pool.stop(10)
        await asyncio.wait_for(attending, 10)
    finally:
        attending.cancel()
        await asyncio.gather(attending, return_exceptions=True)
        for engine in pool.engines:
            await engine.client.end()


@contextlib.contextmanager
def shared(*configs: EngineConfig, **options: Any) -> Iterator[tuple[asyncio.Runner, EnginePool]]:
    """`running` for several tests, each of which goes on in the event loop of ``runner``."""
    with asyncio.Runner() as runner:
        pools = running(configs, **options)
        yield runner, runner.run(pools.__aenter__())
        runner.run(pools.__aexit__(None, None, None))


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def classify(
    pool: EnginePool,
    pixels: np.ndarray,
    r: int,
    deadline: float | None = None,
    want: OutputKind = "classes",
    model: str = "tiny",
) -> Result:
    with pool.lease() as lease:
        lease.write(pixels)
        return await lease.run(
            model, [Schedule.constant(r)], 3 if want == "classes" else 0, deadline, want
        )
