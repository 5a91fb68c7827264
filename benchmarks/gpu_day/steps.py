"""The steps of the day, each a process with a time limit, so that failures stay separate."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.gpu_day import wheels
from benchmarks.gpu_day.day import LOG, Day, Row, read

ROOT = Path(__file__).parents[2]
DEFAULT_BUDGET = 420
LEAST_SECONDS = 8  # in which a step can begin anything
DRY_SECONDS = 120  # of any step where the day is dry: a busy machine may be slow
SPARE_SECONDS = 3  # between when a step should end by itself and when it is ended


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        module: of this package.
        seconds: its own limit; of a shorter budget, its share.
        serves: it needs all packages of the server.
        resumes: after a crash it can go on with what it has not begun.
    """

    name: str
    module: str
    seconds: float
    what: str
    serves: bool = False
    resumes: bool = False


STEPS = (
    Step(
        "device",
        "device",
        20,
        "the machine: versions, copies, matrix products, launches, nodes of a graph",
    ),
    Step("tests", "testing", 70, "the tests marked cuda"),
    Step("proof", "proof", 90, "the self check of ViT-B and S, and what a start takes"),
    Step("forward", "forward", 105, "images/s of the forward pass beside its peers", resumes=True),
    Step("profile", "profile", 25, "kernels, kinds of kernels and gaps"),
    Step("server", "serving", 75, "the server over HTTP", serves=True),
    Step("compile", "compiled", 60, "torch.compile as a peer"),
    Step(
        "kernels",
        "kernels",
        60,
        "each kernel beside other cuts of its work, and beside PyTorch's operators",
    ),
)


def choose(names: list[str] | None) -> list[Step]:
    """Those of `STEPS` with these names, in order; None: all. Raises `ValueError` for others."""
    if names is None:
        return list(STEPS)
    known = [step.name for step in STEPS]
    for name in names:
        if name not in known:
            raise ValueError(f"there is no step {name!r}; there are {', '.join(known)}")
    return [step for step in STEPS if step.name in names]


def run_all(day: Day, steps: list[Step], budget: float, say: Callable[[str], None]) -> list[Row]:
    """Run ``steps`` one after the other within ``budget`` seconds; yield each one's result.

    What is left is shared out among those that are left, in proportion to their limits.
    """
    started = time.time()
    outcomes: list[Row] = []
    for index, step in enumerate(steps):
        left = budget - (time.time() - started)
        wanted = sum(other.seconds for other in steps[index:])
        seconds = min(
            DRY_SECONDS if day.dry else min(step.seconds, left * step.seconds / wanted), left
        )
        lacking = wheels.missing() if step.serves else []
        if lacking and can_serve():
            lacking = []
        begun = time.time()
        if lacking:
            outcome = f"left out: this Python lacks {', '.join(want.name for want in lacking)}"
        elif seconds < min(LEAST_SECONDS, budget / 2):
            outcome = f"left out: {left:.0f} s are left of {budget:.0f}"
        else:
            say(f"[{begun - started:5.0f} s] {step.name}: {step.what} (at most {seconds:.0f} s)")
            outcome = run(day, step, begun + seconds)
        rows = [row for row in read(day.out) if row["step"] == step.name]
        row: Row = {
            "name": step.name,
            "outcome": outcome,
            "seconds": round(time.time() - begun, 1),
            "rows": len(rows),
            "errors": sum(bool(row.get("error")) for row in rows),
        }
        say(
            f"[{time.time() - started:5.0f} s] {step.name}: {outcome}, {row['rows']} rows,"
            f" {row['errors']} errors"
        )
        Day("day", day.out).write(**row)
        outcomes.append(row)
    return outcomes


def can_serve() -> bool:
    """Whether this Python can import the server, whatever the versions of its packages."""
    command = [sys.executable, "-c", "import server.commands.cli, server.api.app"]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode == 0


def run(day: Day, step: Step, until: float) -> str:
    """Run one step to its end or limit, again if it crashed and can resume; ``ok`` if well."""
    view = Day(step.name, day.out, day.dry, day.tome, until - SPARE_SECONDS)
    while True:
        with (day.out / LOG).open("a", encoding="utf-8") as log:
            log.write(f"\n===== {step.name}\n")
            log.flush()
            code = run_process(view.command(step.module), until, log)
        if code is None:
            return "killed at its limit"
        crashed = code < 0 and step.resumes and until - time.time() > LEAST_SECONDS
        if not crashed:
            return "ok" if code == 0 else f"ended with code {code}"
        view.write(
            what="crash", error=f"the process was ended by signal {-code}; it is started again"
        )


def run_process(command: list[str], until: float, log: IO[str]) -> int | None:
    """The exit code of ``command``, None if it was killed; none of its processes survive."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(max(0.1, until - time.time()))
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
