"""What an exception of a model means: for its batch, and for the device."""

from __future__ import annotations

import torch

from server.ipc.messages import FailureKind
from tome_core.backends.cpu.workspace import WORKSPACE

# torch.OutOfMemoryError is what CUDA's caching allocator raises; the CPU's allocator, the driver
# and the libraries on top of it raise a RuntimeError that differs by its text alone.
_MEMORY_TEXTS = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")


def kind_of(error: Exception) -> FailureKind:
    """Whether ``error`` says that memory ran out, for which a smaller batch may be the cure."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "out-of-memory"
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS):
        return "out-of-memory"
    return "error"


def free_memory() -> None:
    """Give back what is kept in blocks of sizes that a smaller batch does not use."""
    WORKSPACE.clear()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_lost(device: torch.device) -> bool:
    """Whether ``device`` fails at everything from now on, as a GPU does after an illegal access or a failed assertion.

    Such an error is sticky: every later call of the process returns it again, so a trifle that
    works rules it out.
    """
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
        torch.ones(1, device=device).add_(1).item()
    except torch.OutOfMemoryError:
        return False
    except RuntimeError:
        return True
    return False
