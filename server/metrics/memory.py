"""The metrics' memory: a region for each process that counts.

It is one anonymous file, as the slots are: no process leaves anything behind in the file system,
and counts outlive the process that counted. prometheus_client's mode for several processes would
need a folder with a file for each process id, which a killed server leaves behind.
"""

from __future__ import annotations

import mmap
import os
import weakref

from server.ipc.shared_memory import create_memory
from server.metrics.regions import Region

# Address space, not memory: the kernel allocates a page when it is first written.
REGION_BYTES = 1 << 20


class MetricsMemory:
    """The mapped memory: regions of the parent process, of API processes, and of engines.

    Args:
        descriptor: the file, from `create`; inherited, where another process has created it.
        workers: number of API processes.
        engines: number of engines.

    Raises:
        ValueError: the file is not of that many regions.

    Attributes:
        descriptor: the file, for processes to inherit.
    """

    def __init__(self, descriptor: int, workers: int, engines: int) -> None:
        size = _size(workers, engines)
        found = os.fstat(descriptor).st_size
        if found != size:
            raise ValueError(
                f"file {descriptor} has {found} bytes, not the {size} of metrics of {workers} API"
                f" processes and {engines} engines; pass the descriptor and numbers of its creator"
            )
        self.descriptor = descriptor
        self._workers = workers
        self._engines = engines
        self._memory = memoryview(mmap.mmap(descriptor, size))

    @classmethod
    def create(cls, workers: int, engines: int) -> MetricsMemory:
        """Return new memory. Its descriptor is open until the object is deleted."""
        descriptor = create_memory("tome-metrics", _size(workers, engines))
        memory = cls(descriptor, workers, engines)
        weakref.finalize(memory, os.close, descriptor)
        return memory

    def parent(self) -> Region:
        """Return the region that the parent process writes."""
        return self._region(0)

    def worker(self, index: int) -> Region:
        """Return the region that API process ``index`` writes.

        Raises:
            IndexError: there are not as many API processes.
        """
        return self._region(1 + range(self._workers)[index])

    def engine(self, index: int) -> Region:
        """Return the region that engine ``index`` writes.

        Raises:
            IndexError: there are not as many engines.
        """
        return self._region(1 + self._workers + range(self._engines)[index])

    def regions(self) -> list[Region]:
        """Return all regions, to read."""
        return [self._region(index) for index in range(1 + self._workers + self._engines)]

    def _region(self, index: int) -> Region:
        start = index * REGION_BYTES
        return Region(self._memory[start : start + REGION_BYTES])


def _size(workers: int, engines: int) -> int:
    return (1 + workers + engines) * REGION_BYTES
