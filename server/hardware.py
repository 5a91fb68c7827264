"""What the machine has, as far as defaults depend on it. No torch: the API process asks too."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

# What a process opens to use an NVIDIA GPU, on Linux and on Windows' Linux. /proc/driver/nvidia
# would not do: a container sees it on every machine that has the driver, whether it was given a GPU
# or not.
_GPU_NODES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may run on, or fewer where its container has a smaller share of time (cgroup v2)."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = quota_file.read_text("ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or a quota of "max"
        return cores


def has_gpu(nodes: Sequence[Path] = _GPU_NODES, visible: str | None = None) -> bool:
    """Whether a GPU can be used here, as far as that shows without its libraries or PyTorch's.

    Args:
        nodes: one of these exists where there is a driver.
        visible: ``CUDA_VISIBLE_DEVICES``, by default that of the environment; empty or -1 hides all
            GPUs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    # A PyTorch that has CUDA brings Triton along; one for CPUs does not.
    usable = visible not in ("", "-1") and find_spec("triton") is not None
    return usable and any(node.exists() for node in nodes)
