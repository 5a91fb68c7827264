"""The machine's cores and GPUs, as far as defaults depend on them. No torch."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

# What a process opens to use an NVIDIA GPU, on Linux and on WSL. /proc/driver/nvidia is no
# substitute: a container sees it on every machine with the driver, with or without a GPU of its
# own.
_GPU_NODES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the number of cores that this process may use.

    A container with a CPU quota (cgroup v2) may use fewer than it can run on.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text("ascii").split()
        quota_cores = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no cgroup, or a quota of "max"
        return cores
    return max(1, min(cores, quota_cores))


def has_gpu(nodes: Sequence[Path] = _GPU_NODES, visible: str | None = None) -> bool:
    """Return whether a GPU can be used here, without loading its libraries or PyTorch.

    Args:
        nodes: where there is a driver, one of these exists.
        visible: ``CUDA_VISIBLE_DEVICES``, by default that of the environment; empty or -1 hides all
            GPUs.
    """
    if visible is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return False
    # Triton is installed with PyTorch for CUDA, but not with PyTorch for CPUs.
    if find_spec("triton") is None:
        return False
    return any(node.exists() for node in nodes)
