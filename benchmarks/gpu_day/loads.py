"""Loads on a running server: what is sent, by whom, and what is read off while it answers."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.processes import (
    GpuBusy,
    children,
    command_line,
    cpu_seconds,
    resident_mb,
)
from tome_load.pictures import generate_jpeg
from tome_top.scrape import Scrape, scrape

ROOT = Path(__file__).parents[2]
MIXED = (0, 4, 8, 12, 16)
CLIENTS = 6  # processes
TIMEOUT_SECONDS = 20.0  # a server under full load answers late


def write_bodies(folder: Path, size: tuple[int, int, int]) -> None:
    """The bodies that are sent: a JPEG, and the binary part of a request of normalised pixels."""
    (folder / "image.jpg").write_bytes(generate_jpeg())
    count = size[0] * size[1] * size[2]
    inputs = {
        "name": "pixel_values",
        "datatype": "FP32",
        "shape": [1, *size],
        "parameters": {"binary_data_size": 4 * count},
    }
    for r in MIXED:
        text = json.dumps({"inputs": [inputs], "parameters": {"r": str(r)}}).encode()
        (folder / f"pixels-{r}.bin").write_bytes(text + floats(count))
        (folder / f"pixels-{r}.len").write_text(str(len(text)))


def floats(count: int) -> bytes:
    """``count`` float32 numbers of about unit variance."""
    import numpy as np

    return np.random.default_rng(0).standard_normal(count, dtype=np.float32).tobytes()


def request(folder: Path, kind: str, name: str, r: int) -> list[str]:
    """What `client` is told of a request: its path, the file of its body, its headers."""
    if kind == "jpeg":
        return [
            f"/classify?r={r}&top_k=5",
            str(folder / "image.jpg"),
            "Content-Type: application/octet-stream",
        ]
    size = (folder / f"pixels-{r}.len").read_text()
    header = f"Inference-Header-Content-Length: {size}"
    path = f"/v2/models/{name}/infer"
    return [path, str(folder / f"pixels-{r}.bin"), "Content-Type: application/octet-stream", header]


@dataclass(frozen=True)
class Ways:
    """Address of a server: its first process, its port, and the port of its metrics."""

    pid: int
    url: str
    metrics: str


@dataclass(frozen=True)
class Reading:
    """What is read off a server; both parts have their own times, as `time.time` counts.

    Attributes:
        cpu: CPU seconds of each process.
        took: seconds that the metrics were waited for.
    """

    cpu: dict[str, float]
    cpu_at: float
    metrics: Scrape
    metrics_at: float
    took: float


def measure(
    ways: Ways,
    requests: Sequence[list[str]],
    connections: int,
    warm: float,
    seconds: float,
    busy: GpuBusy,
) -> dict[str, Any]:
    """One load, seen from all sides.

    Args:
        requests: sent in turns.
        warm, seconds: of the same load before what counts, and of what counts.
    """
    count = min(CLIENTS, connections)
    start = time.time() + 0.4 + warm  # clients have to be there by then
    over = start + seconds
    shares = [connections // count + (number < connections % count) for number in range(count)]
    clients = [client(ways.url, requests, share, start, over) for share in shares]
    try:
        time.sleep(max(0.0, start - time.time()))
        before = read_off(ways)
        time.sleep(max(0.0, over - 0.1 * seconds - time.time()))  # all of it while the load lasts
        after = read_off(ways)
        answers = [json.loads(process.communicate(timeout=20)[0]) for process in clients]
    finally:
        for process in clients:
            process.kill()
            process.wait()
    latencies = sorted(latency for answer in answers for latency in answer["latencies_ms"])
    return {
        "images_per_s": len(latencies) / seconds,
        "p50_ms": quantile(latencies, 0.5),
        "p99_ms": quantile(latencies, 0.99),
        "failures": sum((Counter(answer["failures"]) for answer in answers), Counter()),
        **between(before, after),
        "gpu_busy": busy.share(start + 0.5, over),
        "clients_cpu": round(sum(answer["cpu_s"] for answer in answers) / (seconds + warm), 2),
        "resident_mb": {
            role: round(resident_mb(pid)) for role, pid in processes_by_role(ways.pid).items()
        },
    }


def read_off(ways: Ways) -> Reading:
    """What a server has done so far."""
    used = cpu_by_role(ways.pid)
    cpu_at = time.time()
    metrics = scrape(ways.metrics, TIMEOUT_SECONDS)
    now = time.time()
    return Reading(used, cpu_at, metrics, now, now - cpu_at)


def between(before: Reading, after: Reading) -> dict[str, Any]:
    """What a server did between two readings, a second."""

    def more(name: str) -> float:
        return (after.metrics.total(name) or 0.0) - (before.metrics.total(name) or 0.0)

    batches = more("tome_batch_images_count")
    took = after.metrics_at - before.metrics_at
    cpu_took = after.cpu_at - before.cpu_at
    return {
        "batch_mean": more("tome_batch_images_sum") / batches if batches else None,
        "batches_per_s": batches / took,
        "forward_share": more("tome_forward_seconds_total") / took,
        "cpu": {
            role: round((used - before.cpu.get(role, 0.0)) / cpu_took, 2)
            for role, used in after.cpu.items()
        },
        "metrics_s": [round(reading.took, 3) for reading in (before, after)],
    }


def client(
    url: str, requests: Sequence[list[str]], connections: int, start: float, over: float
) -> subprocess.Popen[str]:
    """A process of clients."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_day.client",
        url,
        "--connections",
        str(connections),
    ]
    command += ["--begin", str(start), "--end", str(over)]
    for one in requests:
        command += ["--request", *one]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def processes_by_role(parent: int) -> dict[str, int]:
    """Return the processes of a server: ``parent``, ``api``, ``api1``, …, ``engine``, ….

    Args:
        parent: the process that supervises the others.
    """
    found = {"parent": parent}
    for role in ("api", "engine"):
        started = [pid for pid in children(parent) if f"server.{role}" in command_line(pid)]
        for number, pid in enumerate(started):
            found[f"{role}{number or ''}"] = pid
    return found


def cpu_by_role(parent: int) -> dict[str, float]:
    """Return the CPU seconds of each process of a server."""
    return {role: cpu_seconds(pid) for role, pid in processes_by_role(parent).items()}


def get(url: str) -> str:
    """The body of a GET."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
        return answer.read().decode()


def quantile(values: Sequence[float], share: float) -> float | None:
    """Of sorted ``values``; None where there are none."""
    if len(values) < 2:
        return values[0] if values else None
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]
