"""The GPU of these tests; with ``TOME_CUDA_TESTS_ON=cpu``, some run on the CPU, to try them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

DEVICE_TYPE = os.environ.get("TOME_CUDA_TESTS_ON", "cuda")
MAX_THREADS = 8


@pytest.fixture(scope="session")
def device() -> torch.device:
    if DEVICE_TYPE != "cuda":
        return torch.device(DEVICE_TYPE)
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def gpu(device: torch.device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    return device


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Multiply float32 without TF32, and use several cores for what runs on the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(MAX_THREADS, os.cpu_count() or 1))
    if DEVICE_TYPE == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        cudnn: Any = torch.backends.cudnn  # torch makes its conv when it runs
        cudnn.conv.fp32_precision = "ieee"
        # As in the engine, since cuDNN builds a plan for every shape.
        torch.backends.cuda.enable_cudnn_sdp(False)
    yield
    torch.set_num_threads(threads)
