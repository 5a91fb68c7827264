"""What the engine's thread does for a batch, in small. No time is checked, only that all of it is
counted.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks.host import BATCHES, KINDS, LEVELS, PARTS, QUEUES, Case, Clock, Host, main, measure
from server.ipc.messages import BatchDone


class Nested:
    """Calls one of its methods in the other, and once raises."""

    def __init__(self) -> None:
        self.taken = {"outer": 0.0, "inner": 0.0}

    def outer(self) -> None:
        started = time.perf_counter()
        inner = self.inner()
        sum(range(20_000))
        self.taken["outer"] = time.perf_counter() - started - inner

    def inner(self) -> float:
        started = time.perf_counter()
        sum(range(10_000))
        self.taken["inner"] = time.perf_counter() - started
        return self.taken["inner"]

    def fails(self) -> None:
        raise ValueError("injected")


def test_a_part_does_not_count_what_it_calls() -> None:
    nested = Nested()
    clock = Clock()
    for method in ("outer", "inner", "fails"):
        clock.watch(nested, method, method)
    started = time.perf_counter()
    nested.outer()
    with pytest.raises(ValueError, match="injected"):
        nested.fails()
    whole = time.perf_counter() - started
    assert set(clock.spent) == {"outer", "inner", "fails"}
    assert all(seconds > 0 for seconds in clock.spent.values())
    assert sum(clock.spent.values()) <= whole
    assert clock.spent["inner"] >= nested.taken["inner"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_round_is_one_batch_of_a_full_queue(kind: str) -> None:
    host = Host(Case(kind, batch=32, queue=64))
    try:
        for _ in range(5):
            spent, cpu = host.round()
            assert set(spent) == set(PARTS)
            assert cpu > 0
            assert len(host.scheduler) == 32
            assert isinstance(host.reply, BatchDone)
            used = {outcome.schedule for outcome in host.reply.outcomes}
            assert len(host.reply.outcomes) == host.reply.images == 32
            assert used <= set(LEVELS)
            assert (len(used) > 1) == (kind == "mixed")
            assert host.reply.predicted_seconds > 0
            assert host.reply.forward_seconds > 0
        assert host.images == 5 * 32
    finally:
        host.close()


def test_no_job_of_the_whole_table_is_late() -> None:
    for kind in KINDS:
        result = measure(Case(kind, max(BATCHES), min(QUEUES)), rounds=4)
        assert result.images == max(BATCHES)


def test_it_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "host.json"
    arguments = [
        "--kind",
        "alike",
        "auto",
        "--batch",
        "4",
        "8",
        "--queue",
        "4",
        "8",
        "--rounds",
        "3",
    ]
    assert main([*arguments, "--json", str(file)]) == 0
    rows = json.loads(file.read_text("utf-8"))["microseconds"]
    assert [(row["kind"], row["batch"], row["queue"]) for row in rows] == [
        (kind, *sizes) for kind in ("alike", "auto") for sizes in ((4, 4), (4, 8), (8, 8))
    ]
    for row in rows:
        assert set(row["parts"]) == set(PARTS)
        assert row["total"] > 0
    assert "microseconds for one batch" in capsys.readouterr().out
