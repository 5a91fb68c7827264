"""What a run gives: one row for each contender, case and r, and where they were measured."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "timm", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Result:
    """One contender in one case at one r.

    Attributes:
        r: a number, or ``mixed`` for a batch of many.
        seconds: of one batch, the median of the rounds.
        fastest, slowest: the rounds' extremes, in seconds.
        bound_seconds: what the batch's FLOPs take at the rate of the fastest matrix product in the
            same rounds.
        gflop: of the batch, exact.
        similarity: cosine of the first image's logits and those of the float32 model at the same r.
    """

    model: str
    dtype: str
    batch: int
    contender: str
    r: str
    seconds: float
    fastest: float
    slowest: float
    rounds: int
    bound_seconds: float
    gflop: float
    similarity: float

    @property
    def images_per_s(self) -> float:
        """Throughput of the median batch."""
        return self.batch / self.seconds

    @property
    def of_bound(self) -> float:
        """Throughput as a share of what the hardware allows."""
        return self.bound_seconds / self.seconds

    @classmethod
    def of(cls, times: Sequence[float], **what: Any) -> Result:
        """From the seconds of each round, and all that is not time."""
        return cls(
            seconds=statistics.median(times),
            fastest=min(times),
            slowest=max(times),
            rounds=len(times),
            **what,
        )


@dataclass(frozen=True)
class Memory:
    """Resident memory of an engine above what it has after its imports, in MB (1e6 bytes).

    Attributes:
        loading: the peak until the model was loaded and warmed up.
        load: the peak of full batches at every level after that.
    """

    model: str
    dtype: str
    batch: int
    imports: float
    loading: float
    load: float


@dataclass
class Run:
    """Everything that was measured, as far as the run has come.

    Attributes:
        about: where, when, and with which versions.
        gemms: the fastest matrix product by dtype: its name and GFLOP/s when it was chosen.
        skipped: one clear line for each contender that could not be measured.
    """

    about: dict[str, str]
    results: list[Result] = field(default_factory=list)
    gemms: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    memory: Memory | None = None


def about(module: str, device: torch.device, threads: int) -> dict[str, str]:
    """The machine, the versions and the command line."""
    found = {
        "command": command_line(module, sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": str(threads),
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def command_line(module: str, arguments: Sequence[str]) -> str:
    """The command without folders of this machine, which mean nothing elsewhere."""
    return " ".join(
        [
            "python -m",
            module,
            *(re.sub(r"(?<![\w:/.])/(?:[^\s/]+/)*", "", one) for one in arguments),
        ]
    )


def _cpu_name() -> str:
    """The CPU, its cores, and the widest vectors PyTorch uses on it."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
            name,
        )
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def write_csv(results: Iterable[Result], path: Path) -> None:
    """One line a row, throughput and share of the bound included."""
    names = [item.name for item in fields(Result)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "images_per_s", "of_bound"])
        for result in results:
            writer.writerow(
                [*(getattr(result, name) for name in names), result.images_per_s, result.of_bound]
            )


def write_json(run: Run, path: Path) -> None:
    """Everything; `read_json` gives it back."""
    path.write_text(json.dumps(asdict(run), indent=1) + "\n", "utf-8")


def read_json(path: Path) -> Run:
    """What `write_json` wrote."""
    found = json.loads(path.read_text("utf-8"))
    found["results"] = [Result(**row) for row in found["results"]]
    found["memory"] = Memory(**found["memory"]) if found["memory"] else None
    return Run(**found)
