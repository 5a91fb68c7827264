"""The most memory that decode workers take, of those that are lost or replaced as well."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from tests.server.conftest import RunningServer

_POLL_SECONDS = 0.1


class WorkerPeaks:
    """What the decode workers of a server took at most, each by itself.

    Attributes:
        resident_mib: resident memory.
        mapped_mb: address space, in millions of bytes.
        limit_mb: of that, as the kernel enforces it.
    """

    def __init__(self) -> None:
        self.resident_mib = 0.0
        self.mapped_mb = 0.0
        self.limit_mb = 0.0

    def look(self, server: RunningServer) -> None:
        """Count what the kernel has recorded for each worker that lives."""
        for pid in server.decode_workers():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                files = Path(f"/proc/{pid}")
                self._count(files.joinpath("status").read_text())
                self._take_limit(files.joinpath("limits").read_text())

    def _count(self, status: str) -> None:
        fields = dict(line.split(":", 1) for line in status.splitlines())
        if "VmHWM" in fields:  # a process that has ended and is not yet waited for has none
            self.resident_mib = max(self.resident_mib, _kib(fields["VmHWM"]) / 1024)
            self.mapped_mb = max(self.mapped_mb, _kib(fields["VmPeak"]) * 1024 / 1e6)

    def _take_limit(self, limits: str) -> None:
        """Take what a worker that has started may map; one that starts has no limit yet."""
        soft = limits.partition("Max address space")[2].split()[:1]
        if soft and soft[0].isdecimal():
            self.limit_mb = int(soft[0]) / 1e6

    async def _keep_looking(self, server: RunningServer) -> None:
        while True:
            self.look(server)
            await asyncio.sleep(_POLL_SECONDS)


def _kib(field: str) -> int:
    """Such as ``  1234 kB``."""
    return int(field.split()[0])


@contextlib.asynccontextmanager
async def watch_workers(server: RunningServer) -> AsyncIterator[WorkerPeaks]:
    """Look again and again, until the block is left."""
    peaks = WorkerPeaks()
    looking = asyncio.create_task(peaks._keep_looking(server))
    try:
        yield peaks
        peaks.look(server)
    finally:
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
