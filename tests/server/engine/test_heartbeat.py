"""The heartbeat: what the thread writes into the shared page."""

from __future__ import annotations

import builtins
import mmap
import time

import pytest

from server.engine import heartbeat
from server.engine.heartbeat import resident_bytes, start_heartbeat
from server.ipc.shared_memory import HeartbeatPage, create_memory


def test_the_thread_updates_the_page_until_the_process_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.001)
    page = HeartbeatPage(create_memory("page", HeartbeatPage.SIZE))
    started = time.monotonic()
    thread = start_heartbeat(page)
    assert thread.daemon  # so it does not keep the process from ending
    first = wait_for_beat_after(page, started)
    second = wait_for_beat_after(page, first)
    assert second > first > started
    assert page.read().resident_bytes > 0


def wait_for_beat_after(page: HeartbeatPage, moment: float) -> float:
    """Return the time of the first beat after ``moment``."""
    end = time.monotonic() + 30
    while page.read().beat <= moment:
        assert time.monotonic() < end
        time.sleep(0.001)
    return page.read().beat


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
