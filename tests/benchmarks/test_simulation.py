"""The simulation in small: what choosing r under load must bring. No clock; a seed decides all."""

from __future__ import annotations

import itertools
import random
import statistics
from pathlib import Path

import pytest

from benchmarks.auto import Open, markdown, steps
from benchmarks.simulation import (
    BOUNDS,
    CONTENDERS,
    LEVELS,
    Device,
    Row,
    Tally,
    capacity,
    main,
    simulate,
)
from server.catalog.entries import BUNDLED
from server.catalog.profiles import read_accuracies
from tome_load.arrivals import arrivals
from tome_load.record import Record
from tome_load.report import LoadReport
from tome_load.spec import LoadSpec
from tome_load.uploads import Upload

EXACT, FAST, _, AUTO = CONTENDERS
DEADLINE = 10 * BOUNDS.images / capacity(16)
SECONDS = 25.0


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    return list(
        itertools.takewhile(
            lambda when: when < seconds, arrivals("poisson", rate, random.Random(seed))
        )
    )


def serve(contender, rate: float, seed: int = 0, deadlines=(DEADLINE,)) -> Tally:
    tally = simulate(contender, poisson(rate, SECONDS, seed), deadlines, seed)
    assert len(tally.used) + tally.late + tally.refused == tally.arrived
    return tally


def in_time(tally: Tally) -> float:
    return len(tally.used) / tally.arrived


def test_below_the_capacity_of_r0_it_is_the_exact_model() -> None:
    tally = serve(AUTO, 0.5 * capacity(0))
    assert in_time(tally) > 0.99
    assert tally.mean_r() <= 2


def test_near_the_capacity_of_r16_it_answers_in_time_where_r0_falls_short() -> None:
    rate = 0.9 * capacity(16)
    auto = serve(AUTO, rate)
    exact = serve(EXACT, rate)
    assert in_time(auto) >= 0.98
    assert in_time(exact) < 0.75
    # And it merges no more than is needed for that.
    assert auto.mean_r() < 15


def test_far_above_all_capacity_it_does_as_much_as_r16() -> None:
    auto, fast = (serve(contender, 2 * capacity(16)) for contender in (AUTO, FAST))
    assert len(auto.used) > 0.95 * len(fast.used)
    assert auto.late / auto.arrived < 0.03  # the others were refused at once


def test_predictions_are_close_on_a_noisy_shared_device() -> None:
    errors = sorted(serve(AUTO, 1.3 * capacity(0)).errors)
    assert statistics.median(errors) < 0.15
    assert errors[int(0.95 * len(errors))] < 0.4


def test_a_steady_load_has_a_steady_r() -> None:
    for seed in range(3):
        times = poisson(0.9 * capacity(16), 40.0, seed)
        device = Device(random.Random(seed), outliers=0.0, shared=1.0)
        assert max(simulate(AUTO, times, (DEADLINE,), seed, device).steps(40.0)) <= 2


def test_deadlines_of_several_lengths_are_met_together() -> None:
    assert in_time(serve(AUTO, 1.3 * capacity(0), deadlines=(DEADLINE / 4, DEADLINE))) > 0.97


def test_it_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--loads", "0.5", "--seconds", "3", "--out", str(tmp_path)]) == 0
    assert len((tmp_path / "simulation.csv").read_text().splitlines()) == 1 + 2 * len(CONTENDERS)
    table = (tmp_path / "simulation.md").read_text().splitlines()
    assert table[0].startswith("| arrivals | load | r=0, in time |")
    assert [line.split(" | ")[:2] for line in table[2:]] == [
        ["| poisson", "0.5"],
        ["| bursty", "0.5"],
    ]
    assert "per batch" in capsys.readouterr().out


def test_accuracy_is_that_of_the_levels_used() -> None:
    rows = read_accuracies(BUNDLED.with_name("fashion-mnist.profile.json"))
    accuracy = {level: rows[str(level)] for level in LEVELS}
    tally = Tally(arrived=4, used=[(1.0, 0), (2.0, 16)], errors=[0.1])
    row = Row.of(tally, 2.0, accuracy, arrivals="poisson", load=1.0, contender="auto")
    assert (row.in_time, row.goodput, row.mean_r) == (0.5, 1.0, 8.0)
    assert row.accuracy == pytest.approx((accuracy[0] + accuracy[16]) / 2)


def test_the_bench_reports_what_was_seen() -> None:
    spec = LoadSpec(url="http://x", uploads=(Upload("p", b""),), rate=1.0, duration=15.0)
    records = [
        Record(number, 0, "auto", 1.0 * number, ended=1.0 * number, status=200)
        for number in range(15)
    ]
    for record in records:
        record.used = "0" if record.intended < 5 else "4" if record.intended < 10 else "2"
    assert steps(LoadReport.of(spec, records, 0.0, 0.0, 1)) == [
        4.0
    ]  # the last window, which drains, is left out
    row = Open("r=auto", 100.0, 60.0, 0.99, 0.01, 500.0, 900.0, 12.0, 1.0, 90.8)
    text = markdown(
        {
            "connections": 32,
            "capacity_16": 1.0,
            "capacity_0": 2.0,
            "deadline_ms": 3.0,
            "open": [vars(row)],
        }
    )
    assert "| r=auto | 100.0 | 99.0% | 1.0% | 500 | 900 | 12.0 | 1.0 | 90.80 |" in text
