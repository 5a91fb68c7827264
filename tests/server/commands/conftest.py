"""The command line in this process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
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
def tome_serve(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TOME_THREADS", "1")

    def run(*arguments: str) -> Result:
        code = main(list(arguments))
        return Result(code, *capfd.readouterr())

    loggers = [logging.getLogger(), logging.getLogger("tome"), logging.getLogger("uvicorn")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield run
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers = handlers
