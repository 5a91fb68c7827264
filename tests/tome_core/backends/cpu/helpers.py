"""What the tests of the CPU kernels share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}

_CPU_INFO = Path("/proc/cpuinfo")
CPU_FLAGS = set(_CPU_INFO.read_text().split() if _CPU_INFO.exists() else ())
HAS_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= CPU_FLAGS
HAS_BFLOAT16 = HAS_AVX512 and "avx512_bf16" in CPU_FLAGS
# The dtypes of which this processor runs the kernels, if any.
KERNEL_DTYPES = [torch.float32, torch.bfloat16] if HAS_BFLOAT16 else [torch.float32]

needs_avx512 = pytest.mark.skipif(
    not HAS_AVX512,
    reason="the kernels are for processors with AVX-512",
)
needs_bfloat16 = pytest.mark.skipif(
    not HAS_BFLOAT16,
    reason="the kernels for bfloat16 are for processors that multiply it",
)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return values.to(dtype)


@contextmanager
def thread_count(count: int) -> Iterator[None]:
    """Run with so many threads: the kernels divide the work by their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
