"""A real server process, one per session; no test here knows how it is made inside."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import pytest

from tests.server.engine.tiny import write_tiny
from tests.server.other_models import write_other_models

ROOT = Path(__file__).parents[2]
API = "server.api"


@dataclass
class RunningServer:
    """``python -m server serve`` in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.settimeout(30)
        return connection

    def metric(self, line: str) -> float:
        """The value of one series of ``/metrics``, 0 where it is not there."""
        for text in httpx.get(f"{self.url}/metrics", timeout=30).text.splitlines():
            if text.startswith(f"{line} "):
                return float(text.split()[-1])
        return 0.0

    def connections(self) -> int:
        """The number of connections to its port that it has not closed, accepted or not (Linux)."""
        open_states = {"01", "08"}  # ESTABLISHED, CLOSE_WAIT (include/net/tcp_states.h)
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        port = f"{self.port:04X}"
        return sum(row[1].endswith(f":{port}") and row[3] in open_states for row in rows)

    def engines(self) -> list[int]:
        """Process numbers of its engines."""
        return [number for number in children(self.process.pid) if not runs(number, API)]

    def api_processes(self) -> list[int]:
        """Process numbers of its API processes."""
        return [number for number in children(self.process.pid) if runs(number, API)]

    def front_end(self) -> list[int]:
        """Process numbers of the parent and of the API processes."""
        return [self.process.pid, *self.api_processes()]

    def decode_workers(self) -> list[int]:
        """Process numbers of the processes that decode sounds and videos."""
        return [worker for process in self.api_processes() for worker in children(process)]

    def signal_engine(self, number: signal.Signals, engine: int = 0) -> None:
        os.kill(self.engines()[engine], number)

    def ready(self) -> bool:
        return httpx.get(f"{self.url}/readyz", timeout=30).status_code == 200


def children(pid: int) -> list[int]:
    """The children of a process; not one that is only just forked, with its parent waiting."""
    try:
        numbers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return []
    own = command(pid)
    return [int(number) for number in numbers if command(number) not in (own, None)]


def runs(pid: int, module: str) -> bool:
    """Whether a process runs ``module``."""
    return module.encode() in (command(pid) or b"").split(b"\0")


def command(pid: int | str) -> bytes | None:
    """The command line of a process; None if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def run_server(
    wait: bool = True, module: str = "server", stderr: IO[str] | None = None, **settings: object
) -> Iterator[RunningServer]:
    """Start a server with ``settings`` (``TOME_*``, in lower case) and end it whatever happens."""
    port = free_port()
    # One thread, because others would only spin beside further servers; and a long timeout, because
    # a busy machine may stop a healthy engine for seconds.
    defaults = {
        "threads": 1,
        "levels": "0,16",
        "max_batch": 8,
        "port": port,
        "log_level": "warning",
        "heartbeat_timeout": 8,
    }
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TOME_")
    }
    environment |= {
        f"TOME_{name.upper()}": str(value) for name, value in (defaults | settings).items()
    }
    process = subprocess.Popen(
        [sys.executable, "-m", module, "serve"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        if wait:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready: "), (
                "the server did not start; see its log"
            )
        yield RunningServer(process, port)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="session")
def start_server() -> Callable[..., contextlib.AbstractContextManager[RunningServer]]:
    return run_server


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    # A busy machine may stop a client for seconds between the header and the body of a request.
    with run_server(
        max_body_bytes=300_000, max_pixels=1_000_000, max_side=4000, body_timeout=10
    ) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def others_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_other_models(tmp_path_factory.mktemp("others")).parent


@pytest.fixture(scope="session")
def others_server(others_folder: Path) -> Iterator[RunningServer]:
    """A server with the models of `tests.server.other_models`, and slots for one batch."""
    with run_server(
        config=others_folder / "models.toml",
        levels="0",
        dtype="float32",
        queue_limit=8,
        api_workers=1,
    ) as running:
        yield running


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.server.tiny_pairs import write_pairs  # transformers takes seconds to import

    return write_pairs(tmp_path_factory.mktemp("pairs")).parent


@pytest.fixture(scope="session")
def pairs_server(pairs_folder: Path) -> Iterator[RunningServer]:
    """A server with the models of `tests.server.tiny_pairs`, which have label sets."""
    config = pairs_folder / "models.toml"
    with run_server(config=config, levels="0,4", dtype="float32", api_workers=1) as running:
        yield running


def eventually(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until ``condition`` holds; a busy machine takes a minute to start an engine."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


@pytest.fixture(scope="session", name="eventually")
def eventually_fixture() -> Callable[..., None]:
    return eventually


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny")).parent
