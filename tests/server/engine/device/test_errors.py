"""Errors of a model: out of memory or not, and whether the device is lost (a simulated GPU)."""

import pytest
import torch

from server.engine.device.errors import classify_error, is_lost
from server.ipc.messages import Failure

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=repr,
)
def test_out_of_memory(error: Exception) -> None:
    assert classify_error(error) == Failure.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("can't allocate memory"),
    ],
    ids=repr,
)
def test_other_errors(error: Exception) -> None:
    assert classify_error(error) == Failure.FAILED


def simulate(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
) -> None:
    """Make the next synchronization with the GPU raise ``error``."""

    def synchronize(device: torch.device) -> None:
        if error is not None:
            raise error

    cpu_ones = torch.ones

    def ones(size: int, device: torch.device) -> torch.Tensor:
        return cpu_ones(size)

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch, "ones", ones)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (None, False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
    ],
    ids=["works", "out-of-memory", "illegal-access"],
)
def test_a_gpu_is_lost_if_it_fails_at_anything_but_memory(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    lost: bool,
) -> None:
    simulate(monkeypatch, error)
    assert is_lost(GPU) == lost


def test_a_cpu_is_never_lost() -> None:
    assert not is_lost(torch.device("cpu"))
