"""The C allocator, in processes of their own: its options apply until a process ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Allocates and frees the blocks of batches, while small blocks stay. Prints by how many MB the
# process grows.
PROGRAM = """
import torch
from benchmarks.memory import megabytes
from server import allocator
assert allocator.{function}()
torch.zeros(1)
before, kept = megabytes("VmRSS"), []
for number in range(60):
    large = [torch.zeros(1_000_000 + 7_000 * (number % 9)) for _ in range(2)]
    kept += [torch.zeros(20) for _ in range(9)]
    del large
print(megabytes("VmRSS") - before)
"""


def growth(function: str) -> float:
    program = PROGRAM.format(function=function)
    command = [sys.executable, "-W", "ignore", "-c", program]
    # Further threads, one for each core, would make the process grow as well.
    return float(subprocess.check_output(command, env=os.environ | {"OMP_NUM_THREADS": "1"}))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_mapped_blocks_leave_no_holes_in_the_heap() -> None:
    assert growth("map_large_blocks") < 5 < growth("keep_freed_memory")
