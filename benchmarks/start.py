"""`python -m benchmarks.start`: how long a server takes until it is ready, and what takes the time.

In turns, each in a new process: one that imports torch and timm, makes the model and reads its
weights, which no server could do without; and the server, until it is ready. The server's own log
says how long its steps take; some of them run at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.checkpoints import write_random_model
from benchmarks.results import about
from server.engine.device.placement import pick_device
from server.hardware import usable_cores

PORT = 8131
LEAST = """
import sys
import safetensors.torch, timm, torch
model = timm.create_model(sys.argv[1])
model.load_state_dict(safetensors.torch.load_file(sys.argv[2]))
"""


def least_seconds(model: str, weights: Path) -> float:
    """Return the seconds of a process that imports the libraries and reads ``weights``."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", LEAST, model, str(weights)], check=True)
    return time.perf_counter() - started


def server_seconds(config: Path) -> tuple[float, dict[str, float]]:
    """Return the seconds until a server with ``config`` is ready, and those of its steps."""
    environment = os.environ | {"TOME_CONFIG": str(config), "TOME_PORT": str(PORT)}
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "serve"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            seconds = time.perf_counter() - started
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()
        log.seek(0)
        text = log.read()
    if not ready:
        raise SystemExit(f"the server ended before it was ready:\n{text}")
    return seconds, _steps(text)


def _steps(log: str) -> dict[str, float]:
    """Return the seconds of each step that a log has, by its name."""
    steps: dict[str, float] = {}
    for line in log.splitlines():
        if not line.startswith("{"):
            continue
        record = json.loads(line)
        message, separator, _ = record["message"].partition(": done in ")
        if separator and "seconds" in record:
            steps[message] = record["seconds"]
    return steps


def report(least: list[float], served: list[float], steps: list[dict[str, float]]) -> Table:
    """Return the medians of all rounds."""
    table = Table("", "seconds", "lowest and highest")
    rows = {
        "torch, timm and the weights alone": least,
        "the server, until it is ready": served,
    }
    rows |= {name: [each[name] for each in steps if name in each] for name in steps[0]}
    for name, seconds in rows.items():
        median = statistics.median(seconds)
        table.add_row(name, f"{median:.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}")
    ratios = [ours / alone for ours, alone in zip(served, least, strict=True)]
    table.add_row(
        "ratio of the first two",
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
    )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    parser.add_argument("--model", default="vit_small_patch16_224", help="of timm")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(arguments)
    console = Console(width=None if Console().is_terminal else 120)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_random_model(args.model, folder, seed=0)
        weights = folder / "random.safetensors"
        least_seconds(args.model, weights)  # fills the caches of files
        least, served, steps = [], [], []
        for _ in track(range(args.rounds), "rounds", transient=True):
            least.append(least_seconds(args.model, weights))
            seconds, taken = server_seconds(config)
            served.append(seconds)
            steps.append(taken)
    details = about("benchmarks.start", pick_device("auto"), usable_cores())
    console.print("; ".join(f"{key}: {value}" for key, value in details.items()))
    console.print(report(least, served, steps))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
