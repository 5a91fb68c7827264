"""The engine's heartbeat: a thread that writes the time into the shared heartbeat page."""

from __future__ import annotations

import resource
import threading
import time

from server.ipc.shared_memory import BEAT_SECONDS, HeartbeatPage

_RESIDENT_FIELD = 1  # of /proc/self/statm, in pages


def start_heartbeat(page: HeartbeatPage) -> threading.Thread:
    """Start the heartbeat. The thread ends with the process."""

    def beat() -> None:
        while True:
            page.beat(time.monotonic(), resident_bytes())
            time.sleep(BEAT_SECONDS)

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
