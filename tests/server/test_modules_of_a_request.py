"""How many modules of the server one request enters: a reader has to know as many."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import ROOT, RunningServer, eventually

MOST = 30
REQUESTS = 12
CORE = "tome_core/model.py"
HEARTBEAT = "server/api/lifecycle.py"  # no request enters it

Calls = list[tuple[float, str]]


@pytest.fixture
def recorded(
    start_server: Callable[..., AbstractContextManager[RunningServer]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[RunningServer]:
    """A server whose processes record what they call, from now on."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "calls"))
    monkeypatch.setenv("CALLS_FOLDER", str(tmp_path))
    with start_server() as running:
        calls_so_far(running, tmp_path)
        yield running


def calls_so_far(running: RunningServer, folder: Path) -> Calls:
    """What all processes have called, in its order."""
    files = [folder / f"{pid}.txt" for pid in (*running.api_processes(), *running.engines())]
    assert len(files) == 2
    for file in files:
        file.unlink(missing_ok=True)
        os.kill(int(file.stem), signal.SIGUSR2)
    eventually(lambda: all(file.exists() for file in files))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return sorted((float(at), module) for at, module in map(str.split, lines))


def entered(calls: Calls, start: float) -> set[str]:
    """The modules of the server from ``start`` until the core is called."""
    modules: set[str] = set()
    for at, module in calls:
        if at < start:
            continue
        if module == CORE:
            return modules
        if module.startswith("server/") and module != HEARTBEAT:
            modules.add(module)
    raise AssertionError("the core was not called")


def test_a_request_enters_few_modules(recorded: RunningServer, tmp_path: Path) -> None:
    image = (ROOT / "examples/sneaker.jpg").read_bytes()
    starts = []
    with httpx.Client(base_url=recorded.url, timeout=30) as client:
        for _ in range(REQUESTS):
            starts.append(time.monotonic())
            client.post("/classify?r=16", content=image).raise_for_status()
    calls = calls_so_far(recorded, tmp_path)
    # Health checks, and what the engine does after the answer to the request before, fall into some
    # requests by chance. The first request has a connection to begin with, so its modules count as
    # well.
    of_all = set.intersection(*(entered(calls, start) for start in starts[1:]))
    modules = of_all | {module for module in entered(calls, starts[0]) if "transport" in module}
    assert {"server/api/transport/protocol.py", "server/engine/device/forward.py"} <= modules
    assert len(modules) <= MOST, "\n".join(sorted(modules))
