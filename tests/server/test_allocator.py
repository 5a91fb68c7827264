"""The C allocator, in processes of their own: its options apply until a process ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from server import allocator

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


# Prints how many pages each of 20 blocks of 3 MB, freed at once, makes the kernel map, and by how
# many MB the process grows when 300 MB are freed.
PROGRAM_OF_BODIES = """
import resource
from benchmarks.memory import megabytes
from server import allocator
assert allocator.{function}()
for number in range(3):
    bytearray(3_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(20):
    bytearray(3_000_000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
before = megabytes("VmRSS")
bodies = [bytearray(3_000_000) for number in range(100)]
del bodies
print(megabytes("VmRSS") - before)
"""


def outputs(program: str, function: str) -> list[float]:
    """The numbers that ``program`` prints."""
    command = [sys.executable, "-W", "ignore", "-c", program.format(function=function)]
    # Further threads, one for each core, would make the process grow as well.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return list(map(float, subprocess.check_output(command, env=environment).split()))


def growth(function: str) -> float:
    (megabytes,) = outputs(PROGRAM, function)
    return megabytes


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_mapped_blocks_leave_no_holes_in_the_heap() -> None:
    assert growth("map_large_blocks") < 5 < growth("keep_freed_memory")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_of_bodies_is_kept_for_the_next_ones_within_a_limit() -> None:
    page_faults, megabytes = outputs(PROGRAM_OF_BODIES, "keep_some_freed_memory")
    assert page_faults < 10
    assert megabytes < allocator.KEPT_BYTES / 1e6 + 10
    mapped_anew, _ = outputs(PROGRAM_OF_BODIES, "map_large_blocks")
    assert mapped_anew > 100  # with huge pages there are fewer
