"""`tome-serve top` against a real server, once and live in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from rich.console import Console

from server.commands.cli import main
from tests.server.conftest import ROOT, RunningServer, eventually, run_server
from tome_load.run import run_load
from tome_load.spec import LoadSpec
from tome_load.uploads import read_uploads
from tome_top.command import TopCommand, frames
from tome_top.scrape import scrape
from tome_top.screen import draw


def test_one_frame_shows_the_work_of_a_server(
    default_server: RunningServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with under_load(default_server):
        for _ in range(5):  # on a busy machine an interval may have no image of one r
            assert main(["top", "--once", "--interval", "0.8", "--url", default_server.url]) == 0
            printed = capfd.readouterr().out
            bars = [line.split()[0] for line in printed.splitlines() if "█" in line]
            if bars == ["0", "16"]:
                break
    assert bars == ["0", "16"]
    assert all(
        word in printed for word in ("images/s", "p99", "x fashion-mnist", "1 ready", "200 ")
    )


@contextlib.contextmanager
def under_load(server: RunningServer) -> Iterator[None]:
    """Two clients send requests at r=0 and r=16 meanwhile."""
    spec = LoadSpec(
        server.url, read_uploads([]), connections=2, duration=600, r=("0", "16"), probe=False
    )
    images = 'tome_images_total{{model="fashion-mnist",r="{}"}}'
    before = {r: server.metric(images.format(r)) for r in spec.r}
    with asyncio.Runner() as runner, ThreadPoolExecutor(1) as pool:
        stop = asyncio.Event()
        load = pool.submit(runner.run, run_load(spec, stop=stop))
        try:
            eventually(lambda: all(server.metric(images.format(r)) > before[r] for r in spec.r))
            yield
        finally:
            runner.get_loop().call_soon_threadsafe(stop.set)
            load.result()


def test_a_server_may_stop_and_come_back() -> None:
    settings: dict[str, Any] = {"levels": "0", "max_batch": 1}
    with run_server(**settings) as server:
        port = server.port
        readings = frames(TopCommand(url=server.url, interval=0.1), scrape(server.url))
        assert next(readings)[0] is not None
    frame, error = next(readings)
    assert frame is None and "Connection refused" in error
    console = Console(width=120)
    with console.capture() as captured:
        console.print(draw(server.url, None, error=error))
    assert captured.get() == f"{server.url}  no answer: Connection refused\n"
    with run_server(**settings, port=port):
        frame, error = next(readings)
    assert frame is not None and not error


def read_until(terminal: int, wanted: bytes | None) -> bytes:
    """What a terminal shows until it has shown ``wanted``; None: until its program has ended."""
    shown = b""
    end = time.monotonic() + 60
    while wanted is None or wanted not in shown:
        assert time.monotonic() < end, shown[-2000:]
        assert select.select([terminal], [], [], 30)[0], shown[-2000:]
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # on Linux: the other side is closed
            break
    return shown


def test_ctrl_c_restores_the_terminal(default_server: RunningServer) -> None:
    """In a terminal of its own, frames use the alternate screen and leave it at the end."""
    terminal, program_side = pty.openpty()
    size = {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "top", "--url", default_server.url, "--interval", "0.2"],
        cwd=ROOT,
        stdout=program_side,
        stderr=program_side,
        env=os.environ | size,
    )
    os.close(program_side)
    try:
        shown = read_until(terminal, b"engines")
        process.send_signal(signal.SIGINT)
        # While nobody reads, a program that writes to a terminal waits.
        shown += read_until(terminal, None)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    enter_alternate_screen = b"\x1b[?1049h"
    leave_alternate_screen = b"\x1b[?1049l"
    assert enter_alternate_screen in shown
    assert leave_alternate_screen in shown
    assert b"Traceback" not in shown
