"""Where and in what precision the models run."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from server.errors import ConfigError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the first GPU, or the CPU where there is none.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{name!r} is no device; use cpu, cuda, cuda:0 ... or auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"there is no {name} here: {torch.cuda.device_count()} GPUs are visible; use cpu or auto")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; use cpu, cuda, cuda:0 ... or auto")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called ``name``; ``auto`` is bfloat16 where the device multiplies in it natively.

    Where it does not, a GPU gets float16, a CPU float32.
    """
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def avoid_plans(device: torch.device) -> None:
    """Keep cuDNN out of attention: it makes a plan for every shape, and every block of every schedule is one.

    Requests would wait for each; flash attention needs none.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def set_threads(count: int, share: int = 1) -> int:
    """Give the models ``count`` CPU threads, 0: one for each core that this process may use. Returns the number.

    Args:
        share: so many engines run side by side, and each gets its part of the cores.
    """
    torch.set_num_threads(count or max(1, usable_cores() // share))
    return torch.get_num_threads()


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may run on, or fewer where its container has a smaller share of time (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text("ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or a quota of "max"
        return cores
