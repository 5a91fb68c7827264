"""One child process of the server: its start, its exit code, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

POLL_SECONDS = 0.02
_EXIT_SECONDS = 1.0


class Child:
    """A Python interpreter that runs ``module`` and inherits ``descriptors`` and no other file.

    The numbers of the first ``descriptors`` are the arguments of its command line.

    Args:
        more: inherited as well, and not on the command line.

    Raises:
        OSError: the system has no more files, processes or memory.
    """

    def __init__(self, module: str, descriptors: Sequence[int], more: Sequence[int] = ()) -> None:
        arguments = [str(descriptor) for descriptor in descriptors]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            env=environment(),
            pass_fds=(*descriptors, *more),
            stdin=subprocess.DEVNULL,
        )

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill the process."""
        if self.alive:
            self._process.kill()

    def wait(self, timeout: float) -> None:
        """Block until the process has ended, for at most ``timeout`` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    async def ended(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        while self.alive:
            await asyncio.sleep(POLL_SECONDS)
        return self._process.returncode

    async def exit_code(self) -> int | None:
        """Wait up to a second for the process to end, and return its exit code.

        It is negative if a signal killed the process, and None if the process has not ended.
        """
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self.ended(), _EXIT_SECONDS)
        return None


def environment() -> dict[str, str]:
    """Return the environment of a child process: that of the parent without its secrets."""
    inherited = {name: value for name, value in os.environ.items() if name != "TOME_API_KEYS"}
    # Idle OpenMP threads release their core soon: the API needs it (measured in benchmarks/).
    inherited.setdefault("GOMP_SPINCOUNT", "1000")
    # oneDNN keeps the compiled code of each shape, with large tables; its default is 1024 shapes.
    inherited.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    # A child imports this very package, never one of that name in the working directory, which the
    # option -P leaves out of the path.
    package_root = str(Path(__file__).parents[2])
    search_path = [package_root, os.environ.get("PYTHONPATH", "")]
    return inherited | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, search_path)),
    }
