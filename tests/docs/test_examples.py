"""Every block of code in README.md and docs/ is run, against a real server where it asks one; see
`blocks` for how. Those of `examples/` are run by tests/examples.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.catalog.entries import ModelSpec
from tests.docs.blocks import Block, read_files
from tests.docs.running import (
    COMMANDS,
    Example,
    examples_of,
    nearly_same_words,
    run_example,
    shape,
)
from tests.server.conftest import ROOT

BLOCKS = read_files([ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ROOT)
EXAMPLES = examples_of(BLOCKS)
RECIPE_BLOCKS = read_files(sorted((ROOT / "examples").rglob("*.md")), ROOT)
ALL_BLOCKS = [*BLOCKS, *RECIPE_BLOCKS]
ALL_EXAMPLES = [*EXAMPLES, *examples_of(RECIPE_BLOCKS)]
# Where the documents say that the server is, and all ways to write it.
ADDRESS = re.compile(r"\b(127\.0\.0\.1|localhost):8000\b")


def check_toml(text: str) -> None:
    """It is TOML; and if it holds models, as the server would read them but for their files."""
    for table in tomllib.loads(text).get("models", []):
        ModelSpec.model_validate(table)


CHECKS: dict[str, Callable[[str], Any]] = {
    "toml": check_toml,
    "json": json.loads,
    "yaml": yaml.safe_load,
}


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=str)
def test_a_block_is_run_or_says_why_not(block: Block) -> None:
    if block.is_output:
        assert any(example.output is block for example in ALL_EXAMPLES), (
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
        for block in ALL_BLOCKS
        if block.language in CHECKS and not block.reason and not block.is_output
    ],
    ids=str,
)
def test_data(block: Block) -> None:
    CHECKS[block.language](block.text)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: str(example.block))
def test_example(example: Example, default_server, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code = ADDRESS.sub(rf"\1:{default_server.port}", example.block.text)
    run_example(example, code, tmp_path)


def test_each_recipe_has_a_test() -> None:
    """Which runs the blocks of its README; see `tests.examples.recipes`."""
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/README.md")}
    tested = {
        path.stem.removeprefix("test_").replace("_", "-")
        for path in (ROOT / "tests" / "examples").glob("test_*.py")
    }
    assert folders == tested
    assert not read_files([ROOT / "examples" / "README.md"], ROOT)


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


@pytest.mark.parametrize(
    ("printed", "is_same"),
    [
        ("0.98  bag-8.png\n", True),
        ("0.97 bag-8.png", True),
        ("0.96 bag-8.png", False),
        ("0.98 bag-7.png", False),
        ("0.98", False),
        ("0.98 bag-8.png 1", False),
        ("0.9801 bag-8.png", False),
    ],
)
def test_text_is_the_same_but_for_the_last_digit(printed: str, is_same: bool) -> None:
    assert nearly_same_words(printed, "0.98 bag-8.png") == is_same
