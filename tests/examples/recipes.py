"""Runs the README of a recipe: its blocks one after the other, in one folder, servers and all."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.docs.blocks import read_files
from tests.docs.running import (
    COMMANDS,
    Example,
    examples_of,
    nearly_same_words,
    run_example,
    session,
)
from tests.server.conftest import ROOT, RunningServer

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
        missing: what blocks need that were left out, since this machine lacks it.
    """

    def __init__(
        self, name: str, folder: Path, running: RunningServer | None = None, **settings: object
    ) -> None:
        self.folder = folder
        self.running = running
        self.missing: list[str] = []
        self.ports = dict(zip(("8000", "8001", "8080"), _free_ports(3), strict=True))
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
                if example.missing:
                    self.missing.append(example.missing)
                elif example.block.server and not is_running:
                    stack.enter_context(self._serving(example))
                elif not is_running:
                    text = self.with_free_ports(example.block.text)
                    run_example(example, text, self.folder, same=nearly_same_words)
            assert len(self.missing) < len(self.examples), "nothing was run"
            yield

    def test(self) -> None:
        """Run its README. Where a part of it was left out, the test is skipped after the rest."""
        with self.run():
            self.skip_if_incomplete()

    def skip_if_incomplete(self) -> None:
        """Skip the test if a block was left out."""
        if self.missing:
            pytest.skip(f"not installed: {', '.join(dict.fromkeys(self.missing))}")

    @contextlib.contextmanager
    def _serving(self, example: Example) -> Iterator[None]:
        block = example.block
        command = [*COMMANDS[block.language], self.with_free_ports(block.text)]
        log = self.folder / f"server-{block.line}.log"
        with (
            log.open("w") as output,
            session(
                command, self.folder, self.settings, stdout=output, stderr=subprocess.STDOUT
            ) as process,
        ):
            url = self.with_free_ports(block.server)
            end = time.monotonic() + START_SECONDS
            while not _answers(url):
                assert process.poll() is None, f"{block} ended: {log.read_text()}"
                assert time.monotonic() < end, f"{block} did not serve {url}: {log.read_text()}"
                time.sleep(0.05)
            yield


def _free_ports(count: int) -> list[str]:
    """Ports that are free now, each another one."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False
