"""Which interpreter `make test-python` takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.other_python import ROOT, find_interpreter, main


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with some interpreters of pyenv, and a command on the path that does not run."""
    for version in ("4.2.9", "4.2.10", "4.20.1"):
        write_script(tmp_path / "versions" / version / "bin" / "python", f"echo {version}")
    write_script(tmp_path / "shims" / "python4.2", "echo version is not set >&2; exit 127")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'shims'}:/bin:/usr/bin")
    return tmp_path / "versions"


def write_script(path: Path, command: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def test_the_newest_of_a_version_is_taken(machine: Path) -> None:
    assert find_interpreter("4.2") == machine / "4.2.10" / "bin" / "python"
    assert find_interpreter("4.2.9") == machine / "4.2.9" / "bin" / "python"
    assert find_interpreter("4.3") is None


def test_one_on_the_path_is_taken(machine: Path) -> None:
    interpreter = machine.parent / "shims" / "python4.3"
    write_script(interpreter, "echo 4.3.0")
    assert find_interpreter("4.3") == interpreter


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a version of Python: make test-python PYTHON=3.12"),
        (["python3"], "name a version of Python"),
        (["4.3"], "there is no python4.3 on the path or under pyenv"),
    ],
)
def test_what_is_missing_is_said(machine: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_it_runs_without_the_packages_of_the_project() -> None:
    command = [sys.executable, "-I", "-S", str(ROOT / "tests" / "other_python.py")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr[:6]) == (1, "name a")
