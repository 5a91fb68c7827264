"""A real server of three API processes: they are killed, stopped and restarted under load."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import ROOT, RunningServer, command, eventually, run_server
from tests.server.tiny_ear import write_models
from tests.server.wire import SNEAKER

WORKERS = 3
CLIENTS = 9
SLOTS = 12 * WORKERS  # so that two processes can take all clients


@pytest.fixture(scope="module")
def three(tiny_folder: Path) -> Iterator[RunningServer]:
    with run_server(
        config=tiny_folder / "models.toml",
        api_workers=WORKERS,
        decode_workers=WORKERS,
        queue_limit=SLOTS,
        heartbeat_timeout=3,  # of an API process: 7.5 seconds
        levels="0",
        dtype="float32",
    ) as running:
        yield running


class Load:
    """Clients that classify a picture over and over, each on a connection that it keeps.

    Attributes:
        statuses: of all answers; 0 for a request without an answer.
    """

    def __init__(self, server: RunningServer) -> None:
        self.statuses: Counter[int] = Counter()
        self._url = f"{server.url}/classify"
        self._ended = threading.Event()
        self._served: set[int] = set()  # threads of the clients that have an answer
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        eventually(lambda: len(self._served) == CLIENTS)
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._ended.is_set():
            with httpx.Client(timeout=60) as client:
                self._ask_over(client)

    def _ask_over(self, client: httpx.Client) -> None:
        while not self._ended.is_set():
            try:
                status = client.post(self._url, content=SNEAKER).status_code
            except httpx.TransportError:
                self.statuses[0] += 1
                return
            self.statuses[status] += 1
            if status == 200:
                self._served.add(threading.get_ident())

    def goes_on(self) -> None:
        """Wait until every client may have had further answers."""
        before = self.statuses[200]
        eventually(lambda: self.statuses[200] > before + 5 * CLIENTS)


def all_slots_are_free(server: RunningServer) -> bool:
    """Whether the API processes together take as many images as there are slots."""
    share = SLOTS // WORKERS
    files = [("file", (str(index), SNEAKER)) for index in range(share)]

    def count() -> int:
        answer = httpx.post(f"{server.url}/classify", files=files, timeout=60)
        results = answer.json().get("results", [])
        return sum("batch_size" in result for result in results)

    # Each on a connection of its own; these spread over the processes.
    with ThreadPoolExecutor(2 * WORKERS) as threads:
        for _ in range(WORKERS):
            counts = list(threads.map(lambda _: count(), range(WORKERS)))
            if counts == [share] * WORKERS:
                return True
    return False


def metrics(server: RunningServer) -> str:
    """Answered by whichever process accepts the connection."""
    return httpx.get(f"{server.url}/metrics", timeout=30).text


def answered(server: RunningServer) -> float:
    return server.metric('tome_requests_total{code="200",model="tiny",route="/classify"}')


def all_serve_without(server: RunningServer, lost: Container[int]) -> bool:
    """Whether every API process accepts connections, and none of ``lost`` is one of them."""
    processes = server.api_processes()
    if len(processes) != WORKERS or any(pid in lost for pid in processes):
        return False
    return min(connections_by_process(server)) > 0


def connections_by_process(server: RunningServer) -> list[int]:
    """Of four connections for each process, how many each has."""
    clients = [httpx.Client(timeout=30) for _ in range(4 * WORKERS)]
    try:
        for client in clients:
            assert client.get(f"{server.url}/healthz").status_code == 200
        return [sockets(pid) for pid in server.api_processes()]
    finally:
        for client in clients:
            client.close()


def test_the_tree_is_a_parent_with_api_processes_and_an_engine(three: RunningServer) -> None:
    assert len(three.api_processes()) == WORKERS
    assert len(three.engines()) == 1
    assert three.decode_workers() == []


def test_connections_spread_over_all_processes(three: RunningServer) -> None:
    # A process that the system does not run for a moment may miss its share.
    eventually(lambda: min(connections_by_process(three)) >= 2)


def sockets(pid: int) -> int:
    """TCP connections that a process has open (Linux)."""
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "01"
    }
    links = []
    with contextlib.suppress(FileNotFoundError):  # the process has ended
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it is closed by now
                links.append(os.readlink(path))
    return sum(link.removeprefix("socket:[").removesuffix("]") in inodes for link in links)


def test_every_process_reports_what_all_have_counted(three: RunningServer) -> None:
    before = answered(three)
    with ThreadPoolExecutor(CLIENTS) as threads:
        statuses = list(
            threads.map(
                lambda _: (
                    httpx.post(f"{three.url}/classify", content=SNEAKER, timeout=30).status_code
                ),
                range(60),
            )
        )
    expected = before + statuses.count(200)
    # A process counts a request after its answer, and another one may be asked for the metrics.
    eventually(lambda: answered(three) >= expected)
    with ThreadPoolExecutor(CLIENTS) as threads:
        seen = list(threads.map(lambda _: answered(three), range(3 * CLIENTS)))
    assert set(seen) == {expected}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_costs_its_own_requests_alone(
    three: RunningServer, number: signal.Signals
) -> None:
    before = answered(three)
    restarts = three.metric("tome_api_worker_restarts_total")
    lost = three.api_processes()[0]
    with Load(three) as load:
        own = sockets(lost)  # each client keeps its connection, and has one request in flight
        os.kill(lost, number)
        eventually(lambda: all_serve_without(three, {lost}))
        load.goes_on()
    assert load.statuses[0] <= own
    assert set(load.statuses) <= {0, 200, 503}
    eventually(lambda: all_slots_are_free(three))
    assert three.metric("tome_api_worker_restarts_total") == restarts + 1
    # The process may have been lost between an answer and its count.
    assert answered(three) >= before + load.statuses[200] - 1
    assert three.metric("tome_queue_jobs") == 0


def test_sigterm_to_one_process_loses_nothing(three: RunningServer) -> None:
    lost = three.api_processes()[-1]
    with Load(three) as load:
        os.kill(lost, signal.SIGTERM)
        eventually(lambda: all_serve_without(three, {lost}))
        load.goes_on()
    assert load.statuses[0] <= 2
    assert set(load.statuses) <= {0, 200}
    eventually(lambda: all_slots_are_free(three))


def test_sigusr1_restarts_all_processes_one_after_the_other(three: RunningServer) -> None:
    before = set(three.api_processes())
    with Load(three) as load:
        three.process.send_signal(signal.SIGUSR1)
        eventually(
            lambda: (
                len(three.api_processes()) == WORKERS and not before & set(three.api_processes())
            )
        )
        load.goes_on()
    assert load.statuses[0] <= 2 * WORKERS
    assert set(load.statuses) <= {0, 200}
    eventually(lambda: all_slots_are_free(three))


def test_an_engine_is_replaced_for_all_processes(three: RunningServer) -> None:
    three.signal_engine(signal.SIGKILL)
    eventually(lambda: not three.ready())
    eventually(three.ready)
    with ThreadPoolExecutor(CLIENTS) as threads:
        statuses = threads.map(
            lambda _: httpx.post(f"{three.url}/classify", content=SNEAKER, timeout=30).status_code,
            range(CLIENTS),
        )
        assert set(statuses) == {200}
    eventually(lambda: all_slots_are_free(three))


def test_sigterm_to_all_processes_at_once_stops_the_server(tiny_folder: Path) -> None:
    with run_server(
        config=tiny_folder / "models.toml", api_workers=2, levels="0", dtype="float32"
    ) as running:
        everyone = [*running.api_processes(), running.process.pid, *running.engines()]
        with Load(running) as load:
            for pid in everyone:
                os.kill(pid, signal.SIGTERM)
            assert running.process.wait(60) == 0
            answers = load.statuses.copy()
        assert set(answers) <= {0, 200, 503}
        assert answers[503] > 0  # whoever asked during the stop was told
        assert not any(map(command, everyone[:-2]))


def test_when_the_parent_is_killed_all_others_end(tiny_folder: Path) -> None:
    with run_server(
        config=tiny_folder / "models.toml", api_workers=2, levels="0", dtype="float32"
    ) as running:
        others = [*running.api_processes(), *running.engines()]
        assert len(others) == 3
        with Load(running):
            running.process.kill()
            eventually(lambda: not any(map(command, others)), 5)


def serve_to_the_end(api_module: str, config: Path) -> str:
    """Run a server with other API processes, which ends by itself, and return its log."""
    variables = {
        "API_MODULE": api_module,
        "TOME_CONFIG": str(config),
        "TOME_LEVELS": "0",
        "TOME_PORT": "0",
        "TOME_THREADS": "1",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "tests.server.supervision.other_api_server", "serve"],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    return ended.stderr


def test_api_processes_that_cannot_start_end_the_server(tiny_folder: Path) -> None:
    log = serve_to_the_end("tests.server.engine.dying", tiny_folder / "models.toml")
    assert "the API process ended while starting (exit code 7)" in log


def test_an_api_process_that_cannot_decode_ends_the_server(tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="needs the extra audio")
    log = serve_to_the_end("tests.server.supervision.undecoding_api", write_models(tmp_path))
    assert "no decode worker can start" in log
    assert "tome-serve[audio]" in log
