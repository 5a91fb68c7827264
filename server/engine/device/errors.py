"""What the exceptions of a model mean for its batch, and for the device."""

from __future__ import annotations

import torch

from server.ipc.messages import Failure
from tome_core.backends.cpu.workspace import WORKSPACE

# CUDA's caching allocator raises torch.OutOfMemoryError. The CPU's allocator, the driver and the
# libraries on top of it raise a RuntimeError, of which the text alone says that memory ran out.
_OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "ALLOC_FAILED",
)


def classify_error(error: Exception) -> Failure:
    """Return whether ``error`` says that memory ran out; a smaller batch may then succeed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Failure.OUT_OF_MEMORY
    if isinstance(error, RuntimeError):
        message = str(error)
        if any(text in message for text in _OUT_OF_MEMORY_TEXTS):
            return Failure.OUT_OF_MEMORY
    return Failure.FAILED


def free_memory() -> None:
    """Release cached memory blocks, whose sizes a smaller batch would not reuse."""
    WORKSPACE.clear()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_lost(device: torch.device) -> bool:
    """Return whether every operation on ``device`` fails until this process ends.

    A GPU is lost after an illegal memory access or a failed assertion. Such an error is sticky:
    every later call of the process returns it again. So the success of one small operation rules
    it out.
    """
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        probe = torch.ones(1, device=device)
        probe.add_(1).item()
    except torch.OutOfMemoryError:
        return False
    except RuntimeError:
        return True
    return False
