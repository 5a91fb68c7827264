"""Step 1: the tests marked ``cuda``, one row each as soon as it is over.

Several processes share them, since most of the time kernels are compiled, each on one core. One
network in one dtype belongs to one process, so that nothing is compiled twice.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_day.day import Day, Row, begin

ROOT = Path(__file__).parents[2]
FOLDER = "tests/cuda"
# What tells most comes first.
FILES = (
    "test_replay.py",
    "test_rounding.py",
    "test_waits.py",
    "test_bits.py",
    "test_same_as_cpu.py",
)
PROCESSES = 6
RESTARTS = 3  # of a process, where the GPU is lost to it or it dies


class Reporter:
    """A plugin of pytest that runs a share of the tests and writes rows.

    It stops the run where the GPU fails at everything since some test.

    Args:
        number, count: of the shares; which one it is, from 0, and how many there are.
    """

    def __init__(self, day: Day, number: int, count: int) -> None:
        self.day = day
        self.number = number
        self.count = count
        self.lost = False
        self._session: Any = None

    def pytest_sessionstart(self, session: Any) -> None:
        """Of pytest."""
        self._session = session

    @pytest.hookimpl(
        tryfirst=True
    )  # before what has run already is left out, so that shares stay as they are
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Of pytest."""
        keys = {
            key: index % self.count
            for index, key in enumerate(dict.fromkeys(map(network_of, items)))
        }
        items[:] = [item for item in items if keys[network_of(item)] == self.number]

    def pytest_collectreport(self, report: Any) -> None:
        """Of pytest: a file that cannot be imported."""
        if report.failed:
            self.day.write(what=f"collecting {report.nodeid}", error=reason(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Of pytest: should the process die in this test, its name is known."""
        self.day.write(what="begun", test=nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Of pytest: what came of a test, or of a part of it that failed."""
        if report.when != "call" and report.outcome == "passed":
            return
        row: Row = {
            "test": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
        }
        if report.outcome != "passed":
            row["error" if report.outcome == "failed" else "reason"] = reason(report)
        self.day.write(**row)
        if report.outcome == "failed" and ("CaptureFailed" in row["error"] or is_lost(self.day)):
            self.lost = True
            self._session.shouldstop = "the device is lost"


def network_of(item: Any) -> tuple[str, str]:
    """The network of a test and its dtype; of a test without, its own name."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters.get("name", item.name), str(parameters.get("dtype"))


def is_lost(day: Day) -> bool:
    """Whether the GPU fails at everything."""
    from benchmarks.gpu_day.accelerator import (
        accelerator,  # needs torch, which the process of all files does without
    )

    return accelerator(day.dry).is_lost()


def reason(report: Any) -> str:
    """The error of a test that failed or was skipped, in a line."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])[:300]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return " | ".join(text.split("\n"))[:400]


def main(day: Day) -> None:
    """Without a part: all processes. With one, such as ``0/6``: that share of the tests."""
    if day.part:
        return run(day, *map(int, day.part.split("/")))
    count = 1 if day.dry else PROCESSES
    parts = [f"{number}/{count}" for number in range(count)]
    running = {part: subprocess.Popen(day.command("testing", part)) for part in parts}
    for part in parts:
        for _ in range(RESTARTS):
            code = running[part].wait()
            if code >= 0:
                break
            day.write(
                what="crash",
                part=part,
                error=f"the process was ended by signal {-code}; it is started again",
            )
            running[part] = subprocess.Popen(day.command("testing", part))
        running[part].wait()


def run(day: Day, number: int, count: int) -> None:
    """Run what has not run yet of a share."""
    done = {row["test"] for row in day.rows() if row.get("what") == "begun"}
    arguments = [f"{FOLDER}/{file}" for file in FILES]
    arguments += [
        "-m",
        "cuda",
        "-o",
        "addopts=",
        "-o",
        "filterwarnings=default",
        "-p",
        "no:cacheprovider",
    ]
    arguments += ["-q", "--tb=short"]
    arguments += [option for test in sorted(done) for option in ("--deselect", test)]
    if day.dry:
        os.environ["TOME_CUDA_TESTS_ON"] = "cpu"
        arguments += ["-k", "rotary"]
    os.chdir(ROOT)
    reporter = Reporter(day, number, count)
    code = int(pytest.main(arguments, plugins=[reporter]))
    if reporter.lost and sum(row.get("what") == "restart" for row in day.rows()) < RESTARTS:
        day.restart("testing", "the GPU may fail at everything")
    day.write(what="pytest", part=day.part, code=code)


if __name__ == "__main__":
    begin(main)
