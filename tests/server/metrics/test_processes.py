"""Processes that count at the same time, are killed, and replaced: no event is lost."""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Iterator

import pytest

from server.ipc.shared_memory import create_memory
from server.metrics.api import Metrics
from server.metrics.memory import MetricsMemory
from tests.server.conftest import ROOT, eventually
from tests.server.metrics import counting

WORKERS = 3
GROWING = ("_total", "_bucket", "_count", "_sum")

Sample = tuple[str, tuple[tuple[str, str], ...]]


class Counting:
    """Processes that run `counting`; this one reads, and is the API process that comes last."""

    def __init__(self) -> None:
        self.memory = MetricsMemory.create(WORKERS + 1, engines=1)
        self.metrics = Metrics(self.memory, WORKERS)
        self._notes = create_memory("notes", mmap.PAGESIZE)
        self.noted = memoryview(mmap.mmap(self._notes, mmap.PAGESIZE)).cast("Q")
        self._last: dict[Sample, float] = {}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        for index in range(WORKERS):
            self.start(index)

    def start(self, index: int) -> None:
        descriptors = (self.memory.descriptor, self._notes)
        arguments = map(str, (*descriptors, WORKERS + 1, index))
        self._processes[index] = subprocess.Popen(
            [sys.executable, "-m", counting.__name__, *arguments], cwd=ROOT, pass_fds=descriptors
        )

    def kill(self, index: int) -> None:
        """Kill a process, in the midst of whatever it does."""
        process = self._processes[index]
        assert process.poll() is None
        process.kill()
        process.wait()

    def kill_all(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()

    def wait_for_more(self, index: int) -> None:
        """Wait until a process has counted more than it has now, reading all metrics meanwhile."""
        before = self.noted[index]

        def has_more() -> bool:
            self.scrape()
            return self.noted[index] > before + 2 * counting.SERIES

        eventually(has_more)

    def scrape(self) -> dict[Sample, float]:
        """Return all samples, none of which is less than in the scrape before."""
        samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name.endswith(GROWING)
        }
        assert not [key for key, value in self._last.items() if samples[key] < value]
        self._last = samples
        return samples


@pytest.fixture
def processes() -> Iterator[Counting]:
    counted = Counting()
    yield counted
    counted.kill_all()


def test_no_event_is_lost_and_no_number_falls(processes: Counting) -> None:
    for index in range(WORKERS):
        processes.wait_for_more(index)
        processes.kill(index)
        processes.start(index)
    for index in range(WORKERS):
        processes.wait_for_more(index)
    processes.kill_all()
    kills = 2 * WORKERS
    samples = processes.scrape()
    noted = sum(processes.noted)
    requests = sum(value for (name, _), value in samples.items() if name == "tome_requests_total")
    decode = (("stage", "decode"),)
    observed = samples["tome_stage_duration_seconds_count", decode]
    # A process may be killed after it has counted, and before it notes that.
    assert noted <= requests <= noted + kills
    assert noted <= observed <= requests
    seconds = samples["tome_stage_duration_seconds_sum", decode]
    assert noted * counting.SECONDS <= seconds <= observed * counting.SECONDS
    for index in range(WORKERS):
        Metrics(processes.memory, index)
    assert processes.metrics.registry.get_sample_value("tome_inflight_requests") == 0
