"""The heartbeat: what the thread writes into the engine's row, and when it ends the process."""

from __future__ import annotations

import builtins
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.engine import heartbeat
from server.engine.heartbeat import EXIT_ORPHAN, ParentWatch, resident_bytes, start_heartbeat
from server.ipc.board import Board, BoardSize, EngineRow

ROOT = Path(__file__).parents[3]
# Never closed: the heartbeat of this process would end it.
CONTROL, ENGINE_CONTROL = (end.detach() for end in socket.socketpair())
# An engine whose batch takes forever.
BUSY = """
import sys, time
from server.engine.heartbeat import ParentWatch, start_heartbeat
from server.ipc.board import Board, BoardSize
row = Board.create(BoardSize(engines=1, workers=0, slots=0)).engines[0]
start_heartbeat(row, ParentWatch(int(sys.argv[1])))
print("started", flush=True)
time.sleep(1e6)
"""
# A parent process that starts it.
PARENT = """
import subprocess, sys
fd = int(sys.argv[2])
subprocess.run([sys.executable, "-c", sys.argv[1], str(fd)], pass_fds=[fd])
"""


def test_the_thread_updates_the_row_until_the_process_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.001)
    row = Board.create(BoardSize(engines=1, workers=0, slots=0)).engines[0]
    started = time.monotonic()
    thread = start_heartbeat(row, ParentWatch(ENGINE_CONTROL))
    assert thread.daemon  # so it does not keep the process from ending
    first = wait_for_beat_after(row, started)
    second = wait_for_beat_after(row, first)
    assert second > first > started
    assert row.heartbeat().resident_bytes > 0


def wait_for_beat_after(row: EngineRow, moment: float) -> float:
    """Return the time of the first beat after ``moment``."""
    end = time.monotonic() + 30
    while row.heartbeat().beat <= moment:
        assert time.monotonic() < end
        time.sleep(0.001)
    return row.heartbeat().beat


def test_an_engine_ends_during_a_batch_when_its_control_channel_is_closed() -> None:
    parent_end, engine_end = socket.socketpair()
    with parent_end, engine_end, started(engine_end, BUSY) as process:
        assert process.poll() is None
        parent_end.close()
        assert process.wait(30) == EXIT_ORPHAN


def test_an_engine_ends_during_a_batch_when_its_parent_is_killed() -> None:
    parent_end, engine_end = socket.socketpair()
    with parent_end, engine_end, started(engine_end, PARENT, BUSY) as parent:
        parent.send_signal(signal.SIGKILL)
        parent.wait(30)
        # The end of the engine closes the output. Its control channel is open all the time.
        assert parent.stdout is not None
        os.set_blocking(parent.stdout.fileno(), False)
        end = time.monotonic() + 30
        while parent.stdout.read() != b"":
            assert time.monotonic() < end
            time.sleep(0.01)


def started(control: socket.socket, *scripts: str) -> subprocess.Popen[bytes]:
    """A process that runs the first of ``scripts``, when its engine has started."""
    descriptor = control.fileno()
    command = [sys.executable, "-c", *scripts, str(descriptor)]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=[descriptor], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    return process


def test_a_parent_that_ended_before_the_first_look_is_noticed() -> None:
    parent_end, engine_end = socket.socketpair()
    with engine_end:
        parent_end.close()
        assert ParentWatch(engine_end.fileno()).has_ended()
    assert not ParentWatch(ENGINE_CONTROL).has_ended()


def test_resident_memory_grows_with_what_is_allocated() -> None:
    before = resident_bytes()
    # Not from the heap, which may have as much that is free and resident.
    with mmap.mmap(-1, 64 << 20) as block:
        block.write(bytes(64 << 20))
        assert resident_bytes() - before > 32 << 20


def test_without_proc_the_peak_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FileNotFoundError

    current = resident_bytes()
    monkeypatch.setattr(builtins, "open", fail)
    peak = resident_bytes()
    monkeypatch.undo()
    assert peak >= current // 2
