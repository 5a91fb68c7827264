"""Servers under measurement, each a process that ends with the block that starts it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from benchmarks.wrk import Body

START_SECONDS = 300
STOP_SECONDS = 20


class NotReady(Exception):
    """A server did not come up."""


@contextmanager
def ours(config: Path, port: int, **settings: object) -> Iterator[str]:
    """Our server with ``config`` and ``TOME_*`` ``settings``, ready; yields its address."""
    environment = os.environ | {
        "TOME_CONFIG": str(config),
        "TOME_PORT": str(port),
        "TOME_LOG_LEVEL": "warning",
        **{f"TOME_{name.upper()}": str(value) for name, value in settings.items()},
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve"], env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise NotReady("the server ended before it was ready; its log says why")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextmanager
def other(command: str, url: str, body: Body, log: Path) -> Iterator[str]:
    """The server of ``command``, once a POST of ``body`` to ``url`` succeeds; yields ``url``.

    What it prints goes to the file ``log``.

    Raises:
        NotReady: it has ended, or does not answer within minutes.
    """
    with session(shlex.split(command), url, body, log):
        yield url


@contextmanager
def session(
    command: Sequence[str],
    url: str,
    body: Body,
    log: Path,
    variables: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """The same, with further environment ``variables``; yields the number of its first process.

    That is the leader of a session, which all processes of the server belong to.
    """
    environment = os.environ | (variables or {})
    # Its workers are in its group, and end with it.
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, start_new_session=True, stdout=file, stderr=file, env=environment
        )
    try:
        _wait(process, url, body, log)
        yield process.pid
    finally:
        _end(process)


def _wait(process: subprocess.Popen[bytes], url: str, body: Body, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    last = "nothing listens"
    while time.monotonic() < end:
        if process.poll() is not None:
            raise NotReady(
                f"the peer ended with code {process.returncode} before it answered at {url}; {log}"
                " says why"
            )
        with suppress(httpx.HTTPError):
            headers = {"Content-Type": body.content_type, **dict(body.headers)}
            answer = httpx.post(url, content=body.content, headers=headers, timeout=60)
            if answer.is_success:
                return
            last = f"the last answer was {answer.status_code}"
        time.sleep(0.5)
    raise NotReady(f"the peer did not answer at {url} within {START_SECONDS} s; {last}; see {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        time.sleep(0.5)  # for its workers
