"""Every block of code in README.md and docs/ is run, against a real server where it asks one; see
`blocks` for how.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.catalog.entries import ModelSpec
from tests.docs.blocks import Block, read_files
from tests.server.conftest import ROOT

FILES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = read_files(FILES, ROOT)
SECONDS = 120
# Where the documents say that the server is, and all ways to write it.
ADDRESS = re.compile(r"\b(127\.0\.0\.1|localhost):8000\b")

COMMANDS: dict[str, list[str]] = {
    "bash": ["bash", "-euo", "pipefail", "-c"],
    "sh": ["sh", "-eu", "-c"],
    "python": [sys.executable, "-c"],
    "javascript": ["node", "--input-type=module", "--eval"],
    "js": ["node", "--input-type=module", "--eval"],
}


def check_toml(text: str) -> None:
    """It is TOML; and if it holds models, as the server would read them but for their files."""
    for table in tomllib.loads(text).get("models", []):
        ModelSpec.model_validate(table)


CHECKS: dict[str, Callable[[str], Any]] = {
    "toml": check_toml,
    "json": json.loads,
    "yaml": yaml.safe_load,
}


@dataclass(frozen=True)
class Example:
    """A block that is run, and what it is said to print."""

    block: Block
    output: Block | None


def examples() -> list[Example]:
    following = {id(block): after for block, after in itertools.pairwise(BLOCKS)}
    found = []
    for block in BLOCKS:
        if not block.reason and not block.is_output and block.language in COMMANDS:
            after = following.get(id(block))
            found.append(Example(block, after if after is not None and after.is_output else None))
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    if block.is_output:
        assert any(example.output is block for example in EXAMPLES), (
            "it is the output of nothing that is run"
        )
    elif block.comment.startswith("<!-- not run"):
        assert len(block.reason) > 10, "say why: <!-- not run: it needs a GPU -->"
    else:
        assert block.language in {*COMMANDS, *CHECKS}, (
            "name its language, or put a comment before it: <!-- not run: why -->, or <!--"
            " output -->"
        )


@pytest.mark.parametrize(
    "block",
    [
        block
        for block in BLOCKS
        if block.language in CHECKS and not block.reason and not block.is_output
    ],
    ids=str,
)
def test_data(block: Block) -> None:
    CHECKS[block.language](block.text)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example.block))
def test_example(example: Example, default_server, tmp_path: Path) -> None:
    block = example.block
    command = COMMANDS[block.language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code = ADDRESS.sub(rf"\1:{default_server.port}", block.text)
    done = subprocess.run(
        [*command, code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if example.output is None:
        return
    if example.output.language == "json":
        assert shape(json.loads(done.stdout)) == shape(json.loads(example.output.text))
    else:
        assert done.stdout.split() == example.output.text.split()


def environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("TOME_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return ours | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


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


def test_something_is_run_of_each_language() -> None:
    assert {"bash", "python", "javascript"} <= {example.block.language for example in EXAMPLES}
    assert sum(example.output is not None for example in EXAMPLES) >= 5


def test_shapes_tell_answers_apart() -> None:
    answer = {"a": 1, "b": [{"c": "x"}], "d": None}
    assert shape(answer) == shape({"a": 2.5, "b": [{"c": "y"}, {"c": "z"}], "d": None})
    for other in (
        {**answer, "a": "1"},
        {**answer, "e": 1},
        {**answer, "b": []},
        {**answer, "b": [{"e": "x"}]},
    ):
        assert shape(answer) != shape(other)
