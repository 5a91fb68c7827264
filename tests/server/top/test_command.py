from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from server.commands.cli import main
from server.load.pictures import read_pictures
from server.load.run import run_load
from server.load.spec import LoadSpec
from server.top.command import TopCommand, frames
from server.top.scrape import scrape
from server.top.screen import draw
from tests.server.conftest import ROOT, RunningServer, eventually


def test_one_frame_of_a_server_at_work(
    server: RunningServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with at_work(server):
        for _ in range(5):  # a busy machine may show nothing of one r, or of any
            assert main(["top", "--once", "--interval", "0.8", "--url", server.url]) == 0
            printed = capfd.readouterr().out
            bars = [line.split()[0] for line in printed.splitlines() if "█" in line]
            if bars == ["0", "16"]:
                break
    assert bars == ["0", "16"]
    assert all(
        word in printed for word in ("images/s", "p99", "x fashion-mnist", "1 ready", "200 ")
    )


@contextlib.contextmanager
def at_work(server: RunningServer) -> Iterator[None]:
    """Two clients ask at r=0 and r=16 meanwhile."""
    spec = LoadSpec(
        server.url, read_pictures([]), connections=2, duration=600, r=("0", "16"), probe=False
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


def test_a_server_that_goes_and_comes_back(start_server: Callable) -> None:
    settings = {"levels": "0", "max_batch": 1}
    with start_server(**settings) as server:
        port = server.port
        readings = frames(TopCommand(url=server.url, interval=0.1), scrape(server.url))
        assert next(readings)[0] is not None
    frame, trouble = next(readings)
    assert frame is None and "Connection refused" in trouble
    console = Console(width=120)
    with console.capture() as captured:
        console.print(draw(server.url, None, (), trouble))
    assert captured.get() == f"{server.url}  no answer: Connection refused\n"
    with start_server(**settings, port=port):
        frame, trouble = next(readings)
    assert frame is not None and not trouble


def test_ctrl_c_leaves_the_terminal_as_it_was(server: RunningServer) -> None:
    """In a terminal of its own: the frames use the other screen, and it is left again."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "top", "--url", server.url, "--interval", "0.2"],
        cwd=ROOT, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while b"engines" not in shown:
        assert select.select([ours], [], [], 30)[0], shown
        shown += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    while select.select([ours], [], [], 1)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # Linux says so that the other side is closed
            break
    os.close(ours)
    assert (
        b"\x1b[?1049h" in shown and b"\x1b[?1049l" in shown
    )  # entered and left the alternate screen
    assert b"Traceback" not in shown
