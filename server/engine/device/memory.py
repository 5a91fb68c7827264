"""How much memory is free, on a GPU or for processes of this machine or container."""

from __future__ import annotations

from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that a model on ``device`` could take; None where that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    found = [_available(_MEMINFO), _room_in_cgroup(_CGROUP)]
    return min((size for size in found if size is not None), default=None)


def _available(meminfo: Path) -> int | None:
    """Return the memory that the system could give without swapping (Linux)."""
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _room_in_cgroup(folder: Path) -> int | None:
    """Return what a container's limit (cgroup v2) leaves. File caches count as free."""
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text().splitlines()
        )
    except (OSError, ValueError):  # no cgroup, or a limit of "max"
        return None
    return max(0, limit - used + int(statistics.get("inactive_file", 0)))
