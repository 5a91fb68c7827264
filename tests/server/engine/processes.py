"""Real engine processes with a tiny model, without a parent process and API processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from server.catalog.entries import read_catalog
from server.ipc.board import Board, BoardSize
from server.ipc.channel import Channel
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import Ready, SlotsReady, Stop
from server.ipc.shared_memory import Slots, create_memory, size_slots
from server.metrics.memory import MetricsMemory
from tests.server.engine.loops import Parent

ROOT = Path(__file__).parents[3]
MODULE = "server.engine"
SIZE = (3, 32, 32)
BOARD = BoardSize(engines=1, workers=3, slots=12)


def configuration(folder: Path, **changes: object) -> EngineConfig:
    if "specs" not in changes:
        changes["specs"] = read_catalog(folder / "models.toml", ())
    values: dict[str, object] = {
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "levels": (0, 4),
        "max_batch": 4,
        "max_batch_work": 0,
        "engine": 0,
        "board": BOARD,
        "target_seconds": 1.0,
        "log_level": "warning",
    }
    return EngineConfig(**(values | changes))  # type: ignore[arg-type]


@dataclass
class EngineProcess:
    """An engine that accepts clients.

    Attributes:
        slots: of all clients together.
        board: with the engine's row.
    """

    process: subprocess.Popen[str]
    parent: Parent
    slots: Slots
    board: Board

    def write(self, slot: int, value: int) -> None:
        """Fill the image of ``slot``."""
        self.slots.view(slot, SIZE, np.uint8)[:] = value


@contextmanager
def running_engine(
    folder: Path, module: str = MODULE, exit_code: int | None = 0, **changes: object
) -> Iterator[EngineProcess]:
    """An engine that is ready; in the end it is told to stop, and ends with ``exit_code``.

    Args:
        exit_code: None if the test itself waits for the end of the process.
    """
    config = configuration(folder, **changes)
    board = Board.create(config.board)
    memory = create_memory()
    parent_end, engine_end = socket.socketpair()
    metrics = MetricsMemory.create(config.board.workers, config.board.engine_rows)
    descriptors = (engine_end.fileno(), memory, board.descriptor, metrics.descriptor)
    with parent_end:
        with engine_end:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, descriptors)],
                cwd=ROOT,
                pass_fds=descriptors,
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            parent = Parent(parent_end, Channel(parent_end))
            parent.send(config)
            ready = parent.channel.receive()
            assert isinstance(ready, Ready), ready
            size_slots(memory, config.board.slots, ready.slot_bytes)
            slots = Slots(memory, config.board.slots, ready.slot_bytes)
            parent.send(SlotsReady(ready.slot_bytes))
            yield EngineProcess(process, parent, slots, board)
            if exit_code is not None:
                parent.send(Stop())
                assert process.wait(30) == exit_code
        finally:
            process.kill()
            process.wait(30)
            assert process.stderr is not None
            process.stderr.close()
            os.close(memory)
            os.close(board.descriptor)


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until ``condition`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
