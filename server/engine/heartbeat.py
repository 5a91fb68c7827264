"""The engine's heartbeat: a thread that writes the time into the engine's row of the board.

It also ends the engine at once when its parent process has ended. The loop would find that out too,
but only after the current batch, which may take long.
"""

from __future__ import annotations

import os
import resource
import select
import threading
import time

from server.ipc.board import BEAT_SECONDS, EngineRow

_RESIDENT_FIELD = 1  # of /proc/self/statm, in pages
EXIT_ORPHAN = 4


class ParentWatch:
    """Tells whether the parent process has ended.

    The system gives the process another parent then. If that happened before the first look, only
    the control channel shows it: the parent has the only other end.

    Args:
        control: descriptor of the engine's end of its channel to the parent.
    """

    def __init__(self, control: int) -> None:
        self._parent = os.getppid()
        self._poll = select.poll()
        self._poll.register(control, 0)  # poll() reports a closed end even without being asked

    def has_ended(self) -> bool:
        """Return whether the parent process has ended, or has closed its end of the channel."""
        return os.getppid() != self._parent or bool(self._poll.poll(0))


def start_heartbeat(row: EngineRow, watch: ParentWatch) -> threading.Thread:
    """Start the heartbeat. The thread ends with the process, and ends it with the parent."""

    def beat() -> None:
        while not watch.has_ended():
            row.beat(time.monotonic(), resident_bytes())
            time.sleep(BEAT_SECONDS)
        os._exit(EXIT_ORPHAN)  # nobody waits for what the process still does

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    return thread


def resident_bytes() -> int:
    """Return the resident memory of this process; without /proc, its peak."""
    try:
        with open("/proc/self/statm", "rb") as file:
            fields = file.read().split()
    except OSError:
        peak_kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak_kibibytes * 1024
    return int(fields[_RESIDENT_FIELD]) * resource.getpagesize()
