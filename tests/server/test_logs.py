"""Log lines are JSON objects, one a line."""

from __future__ import annotations

import json
import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from server import logs
from server.logs import JsonFormatter, configure_terminal, log_step


def formatted(record: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(record)
    assert "\n" not in line
    fields: dict[str, Any] = json.loads(line)
    return fields


def record(message: str, *arguments: object, **options: Any) -> logging.LogRecord:
    logger = logging.getLogger("tome.test")
    return logger.makeRecord(
        logger.name, logging.WARNING, __file__, 1, message, arguments, None, **options
    )


def test_a_line_has_level_logger_and_message() -> None:
    fields = formatted(record("a\nb %d", 3))
    assert fields.pop("time").endswith("+00:00")
    assert fields == {"level": "warning", "logger": "tome.test", "message": "a\nb 3"}


def test_extra_fields_are_added() -> None:
    fields = formatted(record("slow", extra={"engine": "0", "path": object}))
    assert fields["engine"] == "0"
    assert fields["path"] == str(object)


def test_an_exception_becomes_a_traceback() -> None:
    failed = record("failed")
    try:
        raise ValueError("why")
    except ValueError:
        failed.exc_info = sys.exc_info()
    assert formatted(failed)["traceback"].endswith("ValueError: why")


def test_a_step_is_logged_before_it_begins_and_with_its_seconds_after_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 12.2604])
    monkeypatch.setattr(logs, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    log = logging.getLogger("tome.test")
    with caplog.at_level(logging.INFO, "tome.test"), log_step(log, "loading 100% of it"):
        (begun,) = caplog.records
        assert begun.getMessage() == "loading 100% of it"
    done = caplog.records[1]
    assert done.getMessage() == "loading 100% of it: done in 2.3 s"
    assert formatted(done)["seconds"] == 2.26


def test_a_step_that_fails_is_not_done(caplog) -> None:
    log = logging.getLogger("tome.test")
    with (
        caplog.at_level(logging.INFO, "tome.test"),
        pytest.raises(KeyError),
        log_step(log, "loading"),
    ):
        raise KeyError
    assert [line.getMessage() for line in caplog.records] == ["loading"]


def test_a_terminal_gets_sentences(restored_logging: None, capsys) -> None:
    configure_terminal("warning")
    logging.getLogger("tome.test").info("loading")
    logging.getLogger("tome.test").warning("slow")
    assert capsys.readouterr().err == "tome-serve: slow\n"
