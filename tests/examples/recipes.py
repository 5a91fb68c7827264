"""Runs the README of a recipe: its blocks one after the other, in one folder, servers and all."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import httpx

from tests.docs.blocks import read_files
from tests.docs.running import COMMANDS, Example, environment, examples_of, run_example
from tests.server.conftest import ROOT, RunningServer, free_port

# The ports that recipes name: this server, another one, and a proxy.
PORT = re.compile(r"(?<![\d.])(?:8000|8001|8080)(?!\d)")
START_SECONDS = 120
PLAIN_SERVER = "tome-serve serve\n"
# One thread, and the patience with a busy machine that `tests.server.conftest` explains.
SETTINGS = {"threads": 1, "levels": "0,16", "log_level": "warning", "heartbeat_timeout": 8}


class Recipe:
    """One folder of examples/, in a working folder that is like the top of the repository.

    Files of the recipe are copies that name free ports, everything else is a link.

    Attributes:
        folder: where its commands run.
        settings: of the server, ``TOME_*`` in lower case.
        ports: those that are used, by those that the recipe names.
        running: a server without settings, which takes the place of ``tome-serve serve``.
    """

    def __init__(
        self, name: str, folder: Path, running: RunningServer | None = None, **settings: object
    ) -> None:
        self.folder = folder
        self.running = running
        self.ports = {port: str(free_port()) for port in ("8000", "8001", "8080")}
        if running is not None:
            self.ports["8000"] = str(running.port)
        self.settings = SETTINGS | {"port": self.ports["8000"]} | settings
        source = ROOT / "examples" / name
        self.examples = examples_of(read_files([source / "README.md"], ROOT))
        (folder / "server").symlink_to(ROOT / "server")
        (folder / "examples" / name).mkdir(parents=True)
        for path in (ROOT / "examples").iterdir():
            if path.is_file():
                (folder / "examples" / path.name).symlink_to(path)
        for path in source.iterdir():
            if path.is_file():
                copy = folder / "examples" / name / path.name
                copy.write_text(self.with_free_ports(path.read_text()))

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    def with_free_ports(self, text: str) -> str:
        return PORT.sub(lambda found: self.ports[found[0]], text)

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Run its README from the first block to the last; its servers run until the end.

        What an example needs and this machine lacks is left out, with its output.
        """
        with contextlib.ExitStack() as stack:
            for example in self.examples:
                is_running = self.running is not None and example.block.text == PLAIN_SERVER
                if example.missing or is_running:
                    continue
                if example.block.server:
                    stack.enter_context(self._serving(example))
                else:
                    text = self.with_free_ports(example.block.text)
                    run_example(example, text, self.folder)
            yield

    @contextlib.contextmanager
    def _serving(self, example: Example) -> Iterator[None]:
        block = example.block
        command = [*COMMANDS[block.language], self.with_free_ports(block.text)]
        log = self.folder / f"server-{block.line}.log"
        with (
            log.open("w") as output,
            _process(command, self.folder, self.settings, output) as process,
        ):
            url = self.with_free_ports(block.server)
            end = time.monotonic() + START_SECONDS
            while not _answers(url):
                assert process.poll() is None, f"{block} ended: {log.read_text()}"
                assert time.monotonic() < end, f"{block} did not serve {url}: {log.read_text()}"
                time.sleep(0.05)
            yield


@contextlib.contextmanager
def _process(
    command: list[str], folder: Path, settings: Mapping[str, object], output: IO[str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A command with all that it starts, which ends with it."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**settings),
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _signal(process, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False
