"""Run the tests of `tests/tome_core/backends/cuda/` in a process with Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "cuda"


@pytest.mark.skipif(
    torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ,
    reason="they run in this process",
)
@pytest.mark.parametrize("marker", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_cuda_tests_pass_in_the_interpreter(marker: str) -> None:
    triton = pytest.importorskip("triton")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        pytest.skip("the interpreter of this Triton fails on loops whose bounds are not constant")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        marker,
        str(FOLDER),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
