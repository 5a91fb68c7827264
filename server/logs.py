"""Log lines on stderr: one JSON object per line for a server, sentences for a terminal."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

_STANDARD_ATTRIBUTES = set(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}


class JsonFormatter(logging.Formatter):
    """Format time, level, logger and message, then the fields given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return ``record`` as one line."""
        created = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": created.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD_ATTRIBUTES:
                line[name] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str) -> None:
    """Log lines of ``level`` and above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn logs every step of its start and stop, which the server logs in one or two lines.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


class TerminalHandler(logging.Handler):
    """Writes ``tome-serve: MESSAGE`` to what ``sys.stderr`` is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, and the traceback of an exception."""
        sys.stderr.write(f"tome-serve: {self.format(record)}\n")


def configure_terminal(level: str) -> None:
    """Log what this package has to say, from ``level`` on, as sentences without time and level."""
    logger = logging.getLogger("tome")
    logger.handlers = [TerminalHandler()]
    logger.setLevel(level.upper())


@contextlib.contextmanager
def log_step(log: logging.Logger, step: str) -> Iterator[None]:
    """Log ``step`` when the block begins, and how long it took when it has succeeded."""
    log.info("%s", step)
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    log.info("%s: done in %.1f s", step, seconds, extra={"seconds": round(seconds, 3)})
