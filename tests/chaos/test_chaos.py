"""Every scenario of `tests.chaos` in its short form; ``make chaos`` runs the long ones."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("soundfile", reason="needs the extra audio")
pytest.importorskip("av", reason="needs the extra video")

from tests.chaos.harness import Arena
from tests.chaos.oracle import Oracle
from tests.chaos.results import Check, Found, markdown, read, write
from tests.chaos.scenarios import SCENARIOS, Scenario

SHORT = [pytest.param(each, each.short, 1, id=each.name) for each in SCENARIOS if each.short] + [
    pytest.param(each, each.short_of_three, 3, id=f"{each.name}, 3 API processes")
    for each in SCENARIOS
    if each.short_of_three
]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("chaos"))


@pytest.mark.parametrize(("scenario", "times", "workers"), SHORT)
def test_scenario(
    scenario: Scenario, times: int, workers: int, oracle: Oracle, tmp_path: Path
) -> None:
    found = asyncio.run(scenario.run(Arena(oracle, tmp_path, times, workers=workers)))
    assert found.lost == 0
    assert not [str(check) for check in found.checks if not check.holds and not check.timed]


class TestResults:
    first = Found(
        "a",
        "done",
        3,
        "times",
        0,
        (Check("slowest", 1.0, "most", 2.0, "s"), Check("share", 0.9, "least", 0.5)),
    )
    second = Found(
        "a",
        "done",
        4,
        "times",
        1,
        (Check("slowest", 3.0, "most", 2.0, "s"), Check("share", 1.0, "least", 0.5)),
    )

    def test_pieces_add_up_and_the_worst_value_counts(self) -> None:
        both = self.first + self.second
        assert (both.times, both.lost) == (7, 1)
        assert [check.value for check in both.checks] == [3.0, 0.9]
        assert self.first.holds
        assert not self.second.holds
        assert not both.holds

    def test_what_was_kept_comes_back(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        assert read(path) == {}
        write(path, {"where": "here"}, [self.first])
        assert read(path) == {("a", 1): self.first}

    def test_rows_without_a_number_of_api_processes_are_of_one(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        write(path, {}, [self.first])
        document = json.loads(path.read_text())
        for row in document["scenarios"]:
            del row["workers"]
        path.write_text(json.dumps(document))
        assert read(path) == {("a", 1): self.first}

    def test_numbers_of_api_processes_stay_apart(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        of_three = replace(self.second, workers=3)
        write(path, {}, [self.first, of_three])
        assert read(path) == {("a", 1): self.first, ("a", 3): of_three}
        assert "| done | 3 | 4 times |" in markdown({}, [self.first, of_three])

    def test_each_row_says_where_it_was_measured(self) -> None:
        here = replace(self.first, where="here, today")
        there = replace(self.second, where="there, yesterday", scenario="b")
        rows = markdown({}, [here, there]).splitlines()[-2:]
        assert [row.split(" | ")[-1] for row in rows] == ["here, today |", "there, yesterday |"]

    def test_what_was_missed_stands_out(self) -> None:
        table = markdown({}, [self.first, self.second])
        assert table.count("**missed**") == 1
        assert "slowest: 3 s (at most 2) **missed**" in table
