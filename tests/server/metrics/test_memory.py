"""Each process has a region of its own; all map the same memory."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import pytest

from server.metrics.memory import MetricsMemory
from server.metrics.regions import Region
from tests.server.descriptors import descriptors_of


def test_regions_do_not_overlap() -> None:
    memory = MetricsMemory.create(workers=2, engines=3)
    writers: dict[str, Region] = {"parent": memory.parent()}
    for index in range(2):
        writers[f"worker {index}"] = memory.worker(index)
    for index in range(3):
        writers[f"engine {index}"] = memory.engine(index)
    for name, region in writers.items():
        region.append((name,), 1)
    inherited = MetricsMemory(memory.descriptor, workers=2, engines=3)
    assert [list(region.entries()) for region in inherited.regions()] == [
        [(name,)] for name in writers
    ]


@pytest.mark.parametrize("region", [lambda memory: memory.worker(2), lambda m: m.engine(1)])
def test_there_are_no_more_regions(region: Callable[[MetricsMemory], Region]) -> None:
    with pytest.raises(IndexError):
        region(MetricsMemory.create(workers=2, engines=1))


def test_memory_of_other_numbers_is_refused() -> None:
    memory = MetricsMemory.create(workers=2, engines=1)
    with pytest.raises(ValueError, match="of metrics of 1 API processes and 1 engines"):
        MetricsMemory(memory.descriptor, workers=1, engines=1)


def test_memory_takes_no_pages_before_its_first_use_and_leaves_no_descriptor() -> None:
    memory = MetricsMemory.create(workers=16, engines=8)
    descriptor = memory.descriptor
    assert os.fstat(descriptor).st_blocks == 0
    memory.worker(3).append(("name",), 1)
    assert 0 < os.fstat(descriptor).st_blocks * 512 <= 65536
    file = os.fstat(descriptor)
    assert descriptors_of(file)
    del memory
    gc.collect()
    # By the file, not by the number, which the next file that any thread opens gets again.
    assert not descriptors_of(file)
