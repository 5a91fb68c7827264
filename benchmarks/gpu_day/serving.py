"""Step 5: the real server under load over HTTP: images/s, latency, batches, and who is busy."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_day.day import Day, begin
from benchmarks.gpu_day.loads import MIXED, ROOT, Ways, get, measure, request, write_bodies
from benchmarks.gpu_day.processes import GpuBusy

MODEL = "vit_base_patch16_224"
WARM_SECONDS = 0.7
SECONDS = 1.6
SINGLE_SECONDS = 1.0
START_SECONDS = 60
LEAST_SECONDS = 20  # in which servers can start and be loaded
DEFAULT = "default"
Load = tuple[str, str, int]
# What is sent, at which r, over how many connections; what matters most first.
LOADS: tuple[Load, ...] = (
    ("jpeg", "0", 64),
    ("jpeg", "mixed", 64),
    ("pixels", "0", 64),
    ("pixels", "mixed", 64),
    ("jpeg", "0", 1),
    ("jpeg", "0", 256),
)
# Then the same on servers with so many threads that decode, beside one another but loaded in turns.
FEWER_THREADS = ("4", "2")
LOADS_OF_FEWER: tuple[Load, ...] = (("jpeg", "0", 64), ("jpeg", "mixed", 64))


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    process: subprocess.Popen[str]
    url: str
    metrics: str
    decode_threads: str


def main(day: Day) -> None:
    """A server as it is by default with all loads, then servers with fewer threads that decode."""
    busy = GpuBusy(wanted=not day.dry)
    try:
        with tempfile.TemporaryDirectory() as folder:
            config = None if day.dry else random_model(MODEL, Path(folder))
            write_bodies(Path(folder), (1, 28, 28) if day.dry else (3, 224, 224))
            loads: tuple[Load, ...] = (
                (("jpeg", "mixed", 4), ("pixels", "8", 1)) if day.dry else LOADS
            )
            drive(day, (DEFAULT,), loads, config, busy, Path(folder))
            if day.left < LEAST_SECONDS:
                day.write(what="left out", part=f"decode threads {', '.join(FEWER_THREADS)}")
            elif not day.dry:
                drive(day, FEWER_THREADS, LOADS_OF_FEWER, config, busy, Path(folder))
    finally:
        busy.stop()


def drive(
    day: Day,
    threads: Sequence[str],
    loads: Sequence[Load],
    config: Path | None,
    busy: GpuBusy,
    folder: Path,
) -> None:
    """Servers with each of ``threads``, under every load that time allows, in turns."""
    with ExitStack() as stack:
        processes = {
            count: stack.enter_context(started(day, count, config, folder)) for count in threads
        }
        servers = [
            one
            for count, make in processes.items()
            if (one := ready(day, count, make, folder)) is not None
        ]
        for load in loads:
            for server in servers:
                put_under(day, server, load, busy, folder)
        for server in servers:
            day.write(
                what="log",
                decode_threads=server.decode_threads,
                lines=logged(folder, server.decode_threads),
            )


def put_under(day: Day, server: Server, load: Load, busy: GpuBusy, folder: Path) -> None:
    """One load, a row."""
    kind, level, connections = load
    seconds, warm = (SECONDS, WARM_SECONDS) if connections > 1 else (SINGLE_SECONDS, 0.3)
    if day.dry:
        seconds = 1.0
        warm = 5.0  # a busy machine may take so long to start the clients
    named = {
        "decode_threads": server.decode_threads,
        "load": kind,
        "r": level,
        "connections": connections,
    }
    if day.left < seconds + warm + 2 and not day.dry:
        day.write(what="left out", **named)
        return
    with day.case(**named) as row:
        name = json.loads(get(f"{server.url}/models"))["models"][0]["name"]
        requests = [
            request(folder, kind, name, r) for r in (MIXED if level == "mixed" else (int(level),))
        ]
        ways = Ways(server.process.pid, server.url, server.metrics)
        row.update(measure(ways, requests, connections, warm, seconds, busy))


@dataclass(frozen=True)
class Starting:
    """A server that may not be ready yet."""

    process: subprocess.Popen[str]
    ports: tuple[int, int]
    since: float


@contextmanager
def started(day: Day, threads: str, config: Path | None, folder: Path) -> Iterator[Starting]:
    """A starting server with one model and so many decode threads; stopped on leaving."""
    ports = free_port(), free_port()
    settings: dict[str, object] = {
        "port": ports[0],
        "metrics_port": ports[1],
        "log_level": "warning",
    }
    settings |= {"device": "cpu" if day.dry else "cuda"}
    settings |= (
        {"levels": "0,8", "max_batch": 4, "threads": 1, "dtype": "float32"} if day.dry else {}
    )
    settings |= {"config": config} if config else {}
    settings |= {} if threads == DEFAULT else {"decode_threads": threads}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TOME_")}
    environment = inherited | {f"TOME_{key.upper()}": str(value) for key, value in settings.items()}
    since = time.perf_counter()
    with (folder / f"server-{threads}.log").open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "serve"],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=file, text=True,
        )  # fmt: skip
    try:
        yield Starting(process, ports, since)
    finally:
        end(process)


def ready(day: Day, threads: str, starting: Starting, folder: Path) -> Server | None:
    """The server once ready, its start time as a row. None if it fails; its log is a row then."""
    url, metrics = (f"http://127.0.0.1:{port}" for port in starting.ports)
    with day.case(what="server", decode_threads=threads) as row:
        wait_ready(starting.process, min(START_SECONDS, day.left))
        row["start_s"] = time.perf_counter() - starting.since
        row.update(describe_server(url))
    if "error" not in row:
        return Server(starting.process, url, metrics, threads)
    day.write(what="log", decode_threads=threads, lines=logged(folder, threads))
    return None


def random_model(architecture: str, folder: Path) -> Path:
    """A models file with random weights, made by another process: this one needs no torch."""
    code = "import sys, pathlib; from benchmarks.checkpoints import write_random_model as write; "
    code += "print(write(sys.argv[1], pathlib.Path(sys.argv[2]), seed=0))"
    command = [sys.executable, "-c", code, architecture, str(folder)]
    return Path(
        subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
    )


def wait_ready(process: subprocess.Popen[str], seconds: float) -> None:
    """Until the server says that it is ready. Raises `RuntimeError` where it does not."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], max(1.0, seconds))[0]:
        raise RuntimeError(f"not ready within {seconds:.0f} s")
    if not process.stdout.readline():
        raise RuntimeError("it ended before it was ready")


def describe_server(url: str) -> dict[str, Any]:
    """What the server says of its model."""
    (model,) = json.loads(get(f"{url}/models"))["models"]
    return {
        "name": model["name"],
        "dtype": model.get("dtype"),
        "kind": model.get("acceleration"),
        "speedups": {level["r"]: level.get("speedup") for level in model.get("levels", [])},
    }


def logged(folder: Path, threads: str) -> list[str]:
    """The last messages of a server's log."""
    lines = (folder / f"server-{threads}.log").read_text(errors="replace").splitlines()
    return [line[:500] for line in lines[-12:]]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def end(process: subprocess.Popen[str]) -> None:
    """Ask it to end, then make it."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(8)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    begin(main)
