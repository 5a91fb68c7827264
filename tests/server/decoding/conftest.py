"""One pool for the tests of a module, where they need none of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from server.decoding.pool import DecodePool
from tests.server.decoding.pools import DECODERS, LIMITS, PATIENCE, SOUND

ADDRESS_SPACE = 300_000_000


@dataclass
class SharedPool:
    """A pool of one worker, and what runs coroutines with it."""

    runner: asyncio.Runner
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = DecodePool(
            1,
            LIMITS,
            PATIENCE,
            decoders=DECODERS,
            address_space=ADDRESS_SPACE,
            on_worker_lost=self.lost.append,
        )


@pytest.fixture(scope="module")
def _module_pool() -> Iterator[SharedPool]:
    with asyncio.Runner() as runner:
        shared = SharedPool(runner)
        runner.run(shared.pool.start(SOUND))
        yield shared
        runner.run(shared.pool.stop())


@pytest.fixture
def shared(_module_pool: SharedPool) -> SharedPool:
    _module_pool.lost.clear()
    return _module_pool
