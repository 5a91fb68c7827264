"""Runs the code blocks of Markdown files, and compares what they print with what is said."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import Block
from tests.server.conftest import ROOT

SECONDS = 120
STOP_SECONDS = 20
_DECIMAL = re.compile(r"-?\d+\.\d+")
COMMANDS: dict[str, list[str]] = {
    "bash": ["bash", "-euo", "pipefail", "-c"],
    "sh": ["sh", "-eu", "-c"],
    "python": [sys.executable, "-c"],
    "javascript": ["node", "--input-type=module", "--eval"],
    "js": ["node", "--input-type=module", "--eval"],
}


@dataclass(frozen=True)
class Example:
    """A block that is run, and what it is said to print."""

    block: Block
    output: Block | None

    @property
    def missing(self) -> str:
        """What this machine lacks to run it; empty if it can."""
        program = COMMANDS[self.block.language][0]
        if shutil.which(program) is None:
            return program
        needed = self.block.needs
        return needed if needed and importlib.util.find_spec(needed) is None else ""


def same_words(printed: str, said: str) -> bool:
    """Whether both have the same words."""
    return printed.split() == said.split()


def examples_of(blocks: Iterable[Block]) -> list[Example]:
    """The blocks that are run, each with the output that follows it."""
    found = []
    for block, after in itertools.pairwise([*blocks, None]):
        assert block is not None
        if not block.reason and not block.is_output and block.language in COMMANDS:
            found.append(Example(block, after if after is not None and after.is_output else None))
    return found


def run_example(
    example: Example,
    text: str,
    folder: Path,
    *,
    same: Callable[[str, str], bool] = same_words,
) -> None:
    """Run ``text``, the block with this machine's addresses, in ``folder``, and check its output.

    ``same`` compares text that is printed with what is said.
    """
    if example.missing:
        pytest.skip(f"{example.missing} is not installed")
    with session(
        [*COMMANDS[example.block.language], text],
        folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        printed, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, f"{example.block}: {printed}{errors}"
    if example.output is None:
        return
    if example.output.language == "json":
        assert shape(json.loads(printed)) == shape(json.loads(example.output.text))
    else:
        assert same(printed, example.output.text), f"{example.block}: {printed}"


@contextlib.contextmanager
def session(
    command: list[str], folder: Path, settings: Mapping[str, object] | None = None, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """A command in a session of its own, which ends with the block, with all that it has started.

    ``settings`` are ``TOME_*``, in lower case.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**settings or {}),
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        end = time.monotonic() + STOP_SECONDS
        while _signal(process, 0) and time.monotonic() < end:
            time.sleep(0.05)
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[Any], number: int) -> bool:
    """Send a signal to all processes of a session; whether there are any."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def environment(**settings: object) -> dict[str, str]:
    """The variables of a reader with an active environment, and ``settings`` (``TOME_*``)."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("TOME_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ours |= {f"TOME_{name.upper()}": str(value) for name, value in settings.items()}
    return ours | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def nearly_same_words(printed: str, said: str) -> bool:
    """Whether both have the same words, but for the last digit of numbers such as 0.98, which
    depends on the processor and may differ by one.
    """
    words = list(itertools.zip_longest(printed.split(), said.split(), fillvalue=""))
    return all(one == other or _close(one, other) for one, other in words)


def _close(one: str, other: str) -> bool:
    if not (_DECIMAL.fullmatch(one) and _DECIMAL.fullmatch(other)):
        return False
    places = len(other.partition(".")[2])
    same_places = len(one.partition(".")[2]) == places
    return same_places and abs(float(one) - float(other)) < 1.5 * 10**-places


# null where the processor has one dtype alone that is fast.
OPTIONAL = {"dtype_speedup"}


def shape(value: Any) -> Any:
    """Members and types of a JSON value; of a list, those of its first element. An int is a number
    like a float. What depends on the processor is left out.
    """
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items() if name not in OPTIONAL}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return (
        "number"
        if isinstance(value, int | float) and not isinstance(value, bool)
        else type(value).__name__
    )
