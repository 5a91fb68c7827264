"""A process that counts until it is killed, and notes elsewhere how much it has counted.

Arguments: the descriptors of the metrics and of the notes, the number of API processes, and which
one this is.
"""

from __future__ import annotations

import mmap
import sys
from itertools import count

from server.metrics import definitions
from server.metrics.memory import MetricsMemory
from server.metrics.series import SeriesWriter

SERIES = 100  # new ones for as long, so that a process is also killed while it makes one
SECONDS = 0.75


def main() -> None:
    """Count requests, and their durations."""
    descriptor, notes, workers, index = map(int, sys.argv[1:])
    writer = SeriesWriter(MetricsMemory(descriptor, workers, engines=1).worker(index))
    requests = writer.counters(definitions.REQUESTS)
    inflight = writer.gauge(definitions.INFLIGHT_REQUESTS)
    duration = writer.histograms(definitions.STAGE_DURATION).labels("decode")
    noted = memoryview(mmap.mmap(notes, mmap.PAGESIZE)).cast("Q")
    for number in count():
        inflight.inc()
        requests.labels("/classify", "m", str(number % SERIES)).inc()
        duration.observe(SECONDS)
        noted[index] += 1
        inflight.dec()


if __name__ == "__main__":
    main()
