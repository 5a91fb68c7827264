"""Where and in what precision the models run."""

from __future__ import annotations

import torch

from server.errors import ConfigError
from server.hardware import usable_cores

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
        raise ConfigError(
            f"there is no {name} here: {torch.cuda.device_count()} GPUs are visible; use cpu or"
            " auto"
        )
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
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float16
        )
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def make_current(device: torch.device) -> None:
    """Launch on ``device`` what does not say where, as Triton's kernels."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)


def choose_kernels(device: torch.device) -> None:
    """Choose what PyTorch computes with on ``device``.

    cuDNN stays out of attention: it makes a plan for every shape, which a request would wait for,
    and every block of every schedule is one; flash attention needs none. Float32 is float32:
    PyTorch's own default rounds the operands of convolutions to 10 bits (TF32).
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def set_threads(count: int, share: int = 1) -> int:
    """Give the models ``count`` CPU threads, 0: one for each core that this process may use. Returns the number.

    Args:
        share: so many engines run side by side, and each gets its part of the cores.
    """
    torch.set_num_threads(count or max(1, usable_cores() // share))
    return torch.get_num_threads()
