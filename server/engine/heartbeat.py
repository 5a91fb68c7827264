"""The engine's heart: a thread that beats into the header page as long as the process gets to run at all."""

from __future__ import annotations

import resource
import threading
import time

from server.ipc.heartbeat import BEAT_SECONDS, HeartbeatPage


def start_heartbeat(page: HeartbeatPage) -> threading.Thread:
    """Beat from now on. The thread ends with the process."""

    def beat() -> None:
        while True:
            page.beat(time.monotonic(), resident_bytes())
            time.sleep(BEAT_SECONDS)

    thread = threading.Thread(target=beat, name="heart", daemon=True)
    thread.start()
    return thread


def resident_bytes() -> int:
    """Memory of this process now, from /proc; its peak where there is no /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
