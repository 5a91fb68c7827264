"""The slots in shared memory that all engines share, and which of them are free."""

from __future__ import annotations

import logging

from server.ipc.shared_memory import Slots, create_memory, describe_slots

log = logging.getLogger("tome.engine")


class SlotAllocator:
    """Assigns the slots that all engines share.

    Attributes:
        count: number of all slots.
        free: the slots that no image holds.
        descriptor: of the shared memory, which the engines inherit.
        memory: the mapped slots; set by `map`.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = list(range(count))
        self._kept: set[int] = set()
        self.descriptor = create_memory()
        self.memory: Slots

    @property
    def used(self) -> int:
        """Number of slots that are not free."""
        return self.count - len(self.free)

    def map(self, slot_bytes: int) -> None:
        """Give the slots their size, and map them."""
        self.memory = Slots(self.descriptor, self.count, slot_bytes, create=True)
        log.info("%s", describe_slots(self.count, slot_bytes))

    def keep(self, slot: int) -> None:
        """Let an engine and the lease of ``slot`` both hold it: it is free when both are done."""
        self._kept.add(slot)

    def release(self, slot: int) -> None:
        """Note that an engine, or a lease, does not use ``slot`` any more."""
        if slot in self._kept:
            self._kept.remove(slot)
        else:
            self.free.append(slot)
