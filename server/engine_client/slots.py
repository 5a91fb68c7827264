"""The slots of one API process, and which of them are free."""

from __future__ import annotations

from server.ipc.board import Board
from server.ipc.shared_memory import Slots


class SlotShare:
    """Assigns the slots that belong to one of several API processes: every n-th of all slots.

    Args:
        descriptor: of the shared memory.
        total: number of the slots of all API processes.
        worker: index of this API process.
        workers: number of API processes.
        board: where a slot's work is withdrawn when the slot, or its job, is done.

    Attributes:
        count: number of the slots of this process.
        free: those that no image holds.
        memory: all slots, as they were mapped last; set by `map`.
    """

    def __init__(
        self, descriptor: int, total: int, worker: int, workers: int, board: Board
    ) -> None:
        self.free = list(range(worker, total, workers))
        self.count = len(self.free)
        self.memory: Slots
        self._descriptor = descriptor
        self._total = total
        self._board = board
        self._mapped = (-1, -1)  # bytes of a slot, and the offset of all
        self._kept: set[int] = set()

    @property
    def used(self) -> int:
        """Number of slots of this process that are not free."""
        return self.count - len(self.free)

    def map(self, slot_bytes: int, offset: int = 0) -> Slots:
        """Map the slots at ``offset`` in the memory, to which the parent has given its size."""
        if self._mapped != (slot_bytes, offset):
            self.memory = Slots(self._descriptor, self._total, slot_bytes, offset)
            self._mapped = (slot_bytes, offset)
        return self.memory

    def keep(self, slot: int) -> None:
        """Let an engine and the lease of ``slot`` both hold it: it is free when both are done."""
        self._kept.add(slot)

    def free_after_lease(self, slot: int) -> None:
        """Note that a lease does not use ``slot`` any more."""
        if slot in self._kept:
            self._kept.remove(slot)
        else:
            self._board.release(slot)
            self.free.append(slot)

    def free_after_job(self, slot: int) -> None:
        """Note that an engine does not use ``slot`` any more."""
        self._board.release(slot)
        if slot in self._kept:
            self._kept.remove(slot)
        else:
            self.free.append(slot)

    def withdraw(self, slot: int) -> None:
        """Note that no engine will run the job of ``slot``, although one may still read it."""
        self._board.release(slot)
