"""Of the C allocator, in processes of their own: its settings are for good."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Blocks of a batch that leave, and small things that stay: as much as a heap with holes grows by,
# in MB.
PROGRAM = """
import torch
from benchmarks.memory import megabytes
from server import memory
if {mapped}:
    assert memory.map_large_blocks()
else:
    assert memory.keep_freed_memory()
torch.zeros(1)
before, kept = megabytes("VmRSS"), []
for number in range(60):
    large = [torch.zeros(1_000_000 + 7_000 * (number % 9)) for _ in range(2)]
    kept += [torch.zeros(20) for _ in range(9)]
    del large
print(megabytes("VmRSS") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_large_blocks_leave_no_holes() -> None:
    grown = [
        float(
            subprocess.check_output(
                [sys.executable, "-W", "ignore", "-c", PROGRAM.format(mapped=mapped)]
            )
        )
        for mapped in (True, False)
    ]
    assert grown[0] < 5 < grown[1]
