"""CPU time of processes under a load, and the share of time in which the GPU was busy."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started, and theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError, ValueError):
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *children(child)]
    return found


def command_line(pid: int) -> str:
    """The arguments of one process, separated by spaces; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def cpu_seconds(pid: int) -> float:
    """CPU time of one process so far, all its threads; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mb(pid: int) -> float:
    """Memory of one process."""
    try:
        return (
            int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            * os.sysconf("SC_PAGE_SIZE")
            / 1e6
        )
    except OSError:
        return 0.0


class GpuBusy:
    """Sample the GPU's utilisation by nvidia-smi, several times a second, until `stop`."""

    def __init__(self, wanted: bool) -> None:
        self._samples: list[tuple[float, float]] = []
        self._process: subprocess.Popen[str] | None = None
        query = [
            "nvidia-smi",
            "--query-gpu=utilization.gpu",
            "--format=csv,noheader,nounits",
            "-i",
            "0",
            "-lms",
            "200",
        ]
        if wanted:
            with suppress(OSError):
                self._process = subprocess.Popen(
                    query,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    stdin=subprocess.DEVNULL,
                    text=True,
                )
                threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):
                self._samples.append((time.time(), float(line)))

    def share(self, begin: float, end: float) -> float | None:
        """Mean of the samples between two times of `time.time`; None where there are none."""
        values = [value for when, value in self._samples if begin <= when <= end]
        return sum(values) / len(values) / 100 if values else None

    def stop(self) -> None:
        """No more of them."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
