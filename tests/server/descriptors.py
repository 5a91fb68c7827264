"""The descriptors of this process that stand for a file.

Tests that look for a file by the number of its descriptor find another file there if any thread of
the process, such as the heartbeat, opens or closes one meanwhile.
"""

from __future__ import annotations

import contextlib
import os


def descriptors_of(file: os.stat_result) -> set[int]:
    """Return all descriptors that stand for ``file`` (Linux)."""
    found = set()
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.path.samestat(os.fstat(number), file):
                found.add(number)
    return found
