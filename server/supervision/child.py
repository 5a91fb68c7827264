"""One child process of the server: its start, its control channel, its exit code, its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from server.ipc.control_channel import ControlChannel
from server.supervision.health import backoff

log = logging.getLogger("tome.server")

Process = TypeVar("Process")

POLL_SECONDS = 0.02
_EXIT_SECONDS = 1.0
_SECRETS = ("TOME_API_KEYS", "TOME_ADMIN_KEY")
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


class Child:
    """A Python interpreter that runs ``module`` and inherits ``descriptors`` and no other file.

    The arguments of its command line are the numbers of its end of the control channel and of
    ``descriptors``.

    Args:
        more: descriptors that it inherits as well, and that are not on its command line.

    Raises:
        OSError: the system has no more files, processes or memory.

    Attributes:
        control: the channel to it.
    """

    def __init__(self, module: str, descriptors: Sequence[int], more: Sequence[int] = ()) -> None:
        connection, child_connection = socket.socketpair()
        with child_connection, contextlib.ExitStack() as after_failure:
            after_failure.callback(connection.close)
            inherited = (child_connection.fileno(), *descriptors)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *map(str, inherited)],
                env=environment(),
                pass_fds=(*inherited, *more),
                stdin=subprocess.DEVNULL,
            )
            after_failure.pop_all()
        self.control = ControlChannel(connection)

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


async def start_when_possible(
    name: str, start: Callable[[], Process], is_stopping: Callable[[], bool]
) -> Process | None:
    """Return what ``start`` returns; None if ``is_stopping`` before that.

    A shortage of files, processes or memory passes: until then ``start`` is called again and again.

    Args:
        name: of the process, for the log.

    Raises:
        OSError: the system cannot start a process, for another reason.
    """
    failures = 0
    while not is_stopping():
        try:
            return start()
        except OSError as error:
            if error.errno not in _SHORTAGES:
                raise
            failures += 1
            wait = backoff(failures)
            text = "%s: no process can be started: %s; next attempt in %g s"
            log.error(text, name, error.strerror, wait)
            await asyncio.sleep(wait)
    return None


def environment() -> dict[str, str]:
    """Return the environment of a child process: that of the parent without its secrets."""
    inherited = {name: value for name, value in os.environ.items() if name not in _SECRETS}
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
