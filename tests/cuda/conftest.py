"""The GPU that these tests are for. With ``TOME_CUDA_TESTS_ON=cpu`` what can runs on the CPU, to
try the tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

ON = os.environ.get("TOME_CUDA_TESTS_ON", "cuda")


@pytest.fixture(scope="session")
def device() -> torch.device:
    if ON == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return torch.device(ON, 0) if ON == "cuda" else torch.device(ON)


@pytest.fixture(scope="session")
def gpu(device: torch.device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    return device


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Products of float32 as they are, without TF32, and all cores for what runs on the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(8, os.cpu_count() or 1))
    if ON == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        # As in the engine, since it makes a plan for every shape.
        torch.backends.cuda.enable_cudnn_sdp(False)
    yield
    torch.set_num_threads(threads)
