"""The command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from server.commands.cli import main
from tests.server.conftest import ROOT


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture
def tome_serve(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, restored_logging: None
) -> Run:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TOME_THREADS", "1")

    def run(*arguments: str) -> Result:
        code = main(list(arguments))
        return Result(code, *capfd.readouterr())

    return run
