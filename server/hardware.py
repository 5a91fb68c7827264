"""The machine's cores and GPUs, and the defaults that depend on them. No torch."""

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

# A GPU takes as long for a few images as for many, so it needs large batches and a long queue.
_GPU_MAX_BATCH = 128
_GPU_QUEUE_LIMIT = 1024
# One core decodes too few images for a GPU. Some cores stay free for the server's own processes.
# More threads would only wait for each other, and each may hold a large image.
_RESERVED_CORES = 4
_MIN_DECODE_THREADS = 2
_MAX_DECODE_THREADS = 8
# One API process passes on a few thousand requests a second: more than models on so many cores
# compute. A GPU computes ten times as many, and their images have to be decoded.
_CPU_CORES_PER_API_WORKER = 16
_GPU_CORES_PER_API_WORKER = 4
_MAX_API_WORKERS = 8


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


def runs_on_gpu(device: str, gpu_here: bool) -> bool:
    """Return whether an engine of the setting ``device`` runs on a GPU.

    Args:
        gpu_here: whether ``auto`` finds a GPU.
    """
    device_types = {name.strip().split(":")[0] for name in device.split(",")}
    if "cuda" in device_types:
        return True
    return "auto" in device_types and gpu_here


def machine_defaults(cores: int, gpu: bool) -> dict[str, int]:
    """Return the defaults that depend on the machine.

    Args:
        cores: that the server may use.
        gpu: whether the models run on a GPU, which the other processes have to keep busy.
    """
    if not gpu:
        return {"api_workers": _api_workers(cores, _CPU_CORES_PER_API_WORKER)}
    api_workers = _api_workers(cores, _GPU_CORES_PER_API_WORKER)
    free_cores = (cores - _RESERVED_CORES) // api_workers
    decode_threads = min(max(free_cores, _MIN_DECODE_THREADS), _MAX_DECODE_THREADS)
    return {
        "max_batch": _GPU_MAX_BATCH,
        "queue_limit": _GPU_QUEUE_LIMIT,
        "api_workers": api_workers,
        "decode_threads": decode_threads,
    }


def _api_workers(cores: int, cores_per_worker: int) -> int:
    return min(max(cores // cores_per_worker, 1), _MAX_API_WORKERS)
