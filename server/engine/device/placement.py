"""Placement: the device, the dtype and the CPU threads that the models use."""

from __future__ import annotations

import platform

import torch

from server.errors import ConfigError
from server.hardware import usable_cores

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is the first GPU, or the CPU if there is none.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{name!r} is no device; use cpu, cuda, cuda:0 ... or auto") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; use cpu, cuda, cuda:0 ... or auto")
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ConfigError(f"there is no {name} here: {gpus} GPUs are visible; use cpu or auto")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype called ``name``.

    On a GPU ``auto`` is bfloat16 if the device multiplies in it natively, otherwise float16. On a
    CPU it is float32, or None if the CPU supports several dtypes: then each model is timed in all
    of them (`server.engine.device.dtype_choice`).
    """
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    supported = cpu_dtypes()
    return None if len(supported) > 1 else supported[0]


def cpu_dtypes() -> tuple[torch.dtype, ...]:
    """Return the dtypes that this processor multiplies natively, float32 first."""
    if platform.machine() in ("aarch64", "arm64"):
        has_operators = torch.backends.mkldnn.is_available()
        native = has_operators and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return (torch.float32, torch.bfloat16) if native else (torch.float32,)


def set_current_device(device: torch.device) -> None:
    """Make ``device`` the default for code that names none, such as kernel launches of Triton."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)


def configure_pytorch(device: torch.device) -> None:
    """Select the implementations that PyTorch uses for attention and convolution on ``device``.

    Attention does not use cuDNN, which builds a plan for every new shape. Every block of every
    schedule has its own shape, and a request would wait for the plan. Flash attention needs none.

    Convolutions in float32 compute in float32. By default, PyTorch rounds their operands to a
    mantissa of 10 bits (TF32).
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def set_threads(count: int, engines: int = 1) -> int:
    """Set the number of CPU threads of the models, and return it.

    Args:
        count: of threads; 0 for one on each core that this process may use.
        engines: with which the process shares these cores in equal parts.
    """
    if count == 0:
        count = max(1, usable_cores() // engines)
    torch.set_num_threads(count)
    return torch.get_num_threads()
