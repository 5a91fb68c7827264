"""Input of every step, and its output: one line of JSON at a time, flushed at once.

All steps append to one file, so that a step that is killed has lost nothing but the case that it
was in.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"
LOG = "log.txt"
SUMMARY = "summary.txt"

Row = dict[str, Any]


@dataclass(frozen=True)
class Day:
    """One step's view of the day.

    Attributes:
        step: its name; stands in each of its rows.
        out: folder of the results.
        dry: on the CPU, with tiny sizes, and without one call of CUDA.
        tome: checkout of the published ToMe code, if there is one.
        until: when the step should have ended, as `time.time` counts.
        part: what the step's own children are told to do.
    """

    step: str
    out: Path
    dry: bool = False
    tome: Path | None = None
    until: float = float("inf")
    part: str = ""

    @property
    def left(self) -> float:
        """Seconds until the step should have ended."""
        return self.until - time.time()

    def write(self, **row: Any) -> None:
        """Append one row to the results, at once."""
        line = json.dumps({"step": self.step, **row}, default=str)
        with (self.out / RESULTS).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def rows(self) -> list[Row]:
        """What this step has written so far, before a restart of its process too."""
        return [row for row in read(self.out) if row["step"] == self.step]

    @contextmanager
    def case(self, **row: Any) -> Iterator[Row]:
        """A row to fill; written when the block ends, with the error if the block raises one."""
        try:
            yield row
        except Exception as error:  # one case must not cost the others
            row["error"] = describe(error)
        self.write(**row)

    def command(self, module: str, part: str = "") -> list[str]:
        """How ``module`` of this package is started, to do ``part`` of what this step does."""
        options = [
            "--step",
            self.step,
            "--out",
            str(self.out),
            "--until",
            str(self.until),
            "--part",
            part,
        ]
        options += ["--dry"] if self.dry else []
        options += ["--tome", str(self.tome)] if self.tome else []
        return [sys.executable, "-m", f"benchmarks.gpu_day.{module}", *options]

    def restart(self, module: str, why: str) -> None:
        """Replace this process by a fresh one: the only way to recover from a sticky GPU error."""
        self.write(what="restart", error=f"{why}, so the step goes on in a new process")
        sys.stdout.flush()
        command = self.command(module, self.part)
        os.execv(command[0], command)


def read(folder: Path) -> list[Row]:
    """All rows of a day; a line that was cut off is left out."""
    rows: list[Row] = []
    path = folder / RESULTS
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def describe(error: BaseException) -> str:
    """``error`` on one line."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:300]}"


def begin(work: Callable[[Day], None]) -> None:
    """Run ``work`` of a step with what the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--step", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--tome", type=Path)
    parser.add_argument("--until", type=float, default=float("inf"))
    parser.add_argument("--part", default="")
    work(Day(**vars(parser.parse_args())))
