"""Runs the code blocks of Markdown files, and compares what they print with what is said."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import Block
from tests.server.conftest import ROOT

SECONDS = 120
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


def examples_of(blocks: Iterable[Block]) -> list[Example]:
    """The blocks that are run, each with the output that follows it."""
    found = []
    for block, after in itertools.pairwise([*blocks, None]):
        assert block is not None
        if not block.reason and not block.is_output and block.language in COMMANDS:
            found.append(Example(block, after if after is not None and after.is_output else None))
    return found


def run_example(example: Example, text: str, folder: Path, **settings: object) -> None:
    """Run ``text``, the block with this machine's addresses, in ``folder``, and check its output.

    ``settings`` are ``TOME_*``, in lower case.
    """
    if example.missing:
        pytest.skip(f"{example.missing} is not installed")
    done = subprocess.run(
        [*COMMANDS[example.block.language], text],
        cwd=folder,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{example.block}: {done.stdout}{done.stderr}"
    if example.output is None:
        return
    if example.output.language == "json":
        assert shape(json.loads(done.stdout)) == shape(json.loads(example.output.text))
    else:
        assert same_text(done.stdout, example.output.text), f"{example.block}: {done.stdout}"


def environment(**settings: object) -> dict[str, str]:
    """The variables of a reader with an active environment, and ``settings`` (``TOME_*``)."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("TOME_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ours |= {f"TOME_{name.upper()}": str(value) for name, value in settings.items()}
    return ours | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def same_text(printed: str, said: str) -> bool:
    """Whether both have the same words. The last digit of a number such as 0.98 depends on the
    processor, so it may differ by one.
    """
    words = list(itertools.zip_longest(printed.split(), said.split(), fillvalue=""))
    return all(one == other or _close(one, other) for one, other in words)


def _close(one: str, other: str) -> bool:
    if not (_DECIMAL.fullmatch(one) and _DECIMAL.fullmatch(other)):
        return False
    places = len(other.partition(".")[2])
    return abs(float(one) - float(other)) < 1.5 * 10**-places


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
