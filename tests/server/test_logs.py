"""Log lines are JSON objects, one a line."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from server.logs import JsonFormatter


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
