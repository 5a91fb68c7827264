"""Restarts of an engine, with made-up processes."""

import asyncio
import errno
from types import SimpleNamespace

import pytest

from server.errors import EngineStartError
from server.ipc.board import Board, BoardSize, Heartbeat
from server.ipc.messages import Accelerations, Ready
from server.ipc.shared_memory import SlotRegion
from server.supervision import child
from server.supervision import engine_supervisor as module
from server.supervision.engine_process import EngineProcess
from server.supervision.engine_supervisor import EngineSupervisor
from server.supervision.health import HealthPolicy

NO_GRAPHS = Accelerations(graphs=False)
READY = Ready((), slot_bytes=1, cost_models={})
UNEXPLAINED = EngineStartError("the process ended")
EXPLAINED = EngineStartError("there is no such device", explained=True)
UNSAFE = EngineStartError("CUDA graphs failed", safer=NO_GRAPHS)


class MadeUpProcess(EngineProcess):
    """A process whose start ends with ``result``; once it is ready, it is lost at once."""

    def __init__(self, result: Ready | EngineStartError) -> None:
        self.result = result
        self.ready = False

    @property
    def heartbeat(self) -> Heartbeat:
        return Heartbeat()

    async def wait_until_loaded(self, timeout: float) -> Ready:
        if isinstance(self.result, EngineStartError):
            raise self.result
        return self.result

    def accept_jobs(self, region: SlotRegion) -> None:
        self.ready = True

    async def receive(self) -> None:
        return

    def kill(self) -> None:
        return

    async def close(self) -> None:
        return

    async def exit_code(self) -> int | None:
        return -9


class Engine:
    """A supervisor whose processes have the given results, one after the other, then stops."""

    def __init__(
        self, *results: Ready | EngineStartError | OSError, failed_starts: int = 2
    ) -> None:
        self.results = list(results)
        self.launched: list[Accelerations] = []
        self.ended = 0
        self.row = Board.create(BoardSize(engines=1, workers=1, slots=1)).engines[0]
        self.supervisor = EngineSupervisor(
            name="0",
            launch=self.launch,
            row=self.row,
            on_loaded=lambda supervisor, ready: SlotRegion(0, ready.slot_bytes),
            on_ready=lambda supervisor: None,
            on_ended=self.count_end,
            on_restart=self.stop_after_the_last,
            policy=HealthPolicy(failed_starts=failed_starts),
        )

    def count_end(self, supervisor: EngineSupervisor) -> None:
        self.ended += 1

    def launch(self, accelerations: Accelerations) -> EngineProcess:
        self.launched.append(accelerations)
        result = self.results[len(self.launched) - 1]
        if isinstance(result, OSError):
            raise result
        return MadeUpProcess(result)

    def stop_after_the_last(self, name: str) -> None:
        if len(self.launched) == len(self.results):
            self.supervisor.kill()

    def run(self) -> None:
        asyncio.run(self.supervisor.run())


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The failed starts before each restart, in place of waits."""
    failures: list[int] = []

    def no_backoff(failed_starts: int) -> float:
        failures.append(failed_starts)
        return 0.0

    for patched in (module, child):
        monkeypatch.setattr(patched, "backoff", no_backoff)
    return failures


def test_an_engine_that_was_ready_restarts_at_once_as_often_as_it_is_lost(
    waits: list[int],
) -> None:
    engine = Engine(*[READY] * 5)
    engine.run()
    assert len(engine.launched) == engine.ended == 5
    assert waits == [0] * 4
    assert not engine.supervisor.given_up


def test_only_consecutive_failed_starts_count(waits: list[int]) -> None:
    engine = Engine(UNEXPLAINED, READY, UNEXPLAINED, READY)
    engine.run()
    assert waits == [1, 0, 1]


def test_an_engine_is_given_up_after_too_many_failed_starts() -> None:
    engine = Engine(READY, UNEXPLAINED, UNEXPLAINED, READY)
    with pytest.raises(EngineStartError, match="the process ended"):
        engine.run()
    assert engine.supervisor.given_up
    assert len(engine.launched) == 3


def test_a_mistake_in_the_settings_gives_the_engine_up_at_its_first_start() -> None:
    engine = Engine(EXPLAINED, READY)
    with pytest.raises(EngineStartError, match="no such device"):
        engine.run()
    assert len(engine.launched) == 1


def test_an_unsafe_acceleration_is_left_out_and_does_not_count_as_a_failed_start(
    waits: list[int],
) -> None:
    engine = Engine(UNSAFE, READY, failed_starts=1)
    engine.run()
    assert engine.launched == [Accelerations(), NO_GRAPHS]
    assert waits == [0]


def test_an_unsafe_acceleration_that_is_left_out_already_counts_as_a_failed_start() -> None:
    engine = Engine(UNSAFE, UNSAFE, READY, failed_starts=1)
    with pytest.raises(EngineStartError, match="CUDA graphs failed"):
        engine.run()
    assert engine.launched == [Accelerations(), NO_GRAPHS]


def test_a_shortage_of_files_passes_and_does_not_count_as_a_failed_start(
    waits: list[int],
) -> None:
    shortage = OSError(errno.EMFILE, "Too many open files")
    engine = Engine(READY, *[shortage] * 3, READY, failed_starts=1)
    engine.run()
    assert waits == [0, 1, 2, 3]
    assert not engine.supervisor.given_up


def test_a_process_that_cannot_be_started_at_all_gives_the_engine_up() -> None:
    engine = Engine(READY, FileNotFoundError(errno.ENOENT, "No such file"), READY)
    with pytest.raises(FileNotFoundError):
        engine.run()
    assert engine.supervisor.given_up


def test_an_engine_that_is_not_ready_is_expected_after_the_time_of_its_last_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0

    async def load_slowly(process: MadeUpProcess, timeout: float) -> Ready:
        nonlocal now
        now += 7.0
        return READY

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(MadeUpProcess, "wait_until_loaded", load_slowly)
    engine = Engine(READY, READY)
    assert engine.row.expected_ready == now + 5
    engine.run()
    assert now == 114
    assert engine.row.expected_ready == now + 7
    assert not engine.row.ready
