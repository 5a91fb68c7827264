"""The memory that all processes of a server share: slots, board, and metrics."""

from __future__ import annotations

import os
from dataclasses import dataclass

from server.ipc.board import Board, BoardSize
from server.ipc.shared_memory import SlotRegions, create_memory
from server.metrics.memory import MetricsMemory


@dataclass(frozen=True)
class SharedMemory:
    """The shared memory, as the process that creates it has it.

    Attributes:
        slots: descriptor of the memory of the slots, whose size is set when an engine is ready.
        size: of the board.
        regions: of the slots.
    """

    slots: int
    board: Board
    metrics: MetricsMemory
    size: BoardSize
    regions: SlotRegions

    @classmethod
    def create(cls, size: BoardSize) -> SharedMemory:
        """Return new shared memory for so many processes."""
        metrics = MetricsMemory.create(size.workers, size.engine_rows)
        slots = create_memory()
        return cls(slots, Board.create(size), metrics, size, SlotRegions(slots, size.slots))

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What child processes inherit, in the order of their command line."""
        return (self.slots, self.board.descriptor, self.metrics.descriptor)

    def close(self) -> None:
        """Close the descriptors, but that of the metrics, which closes itself. Maps stay."""
        for descriptor in (self.slots, self.board.descriptor):
            os.close(descriptor)
