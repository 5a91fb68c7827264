"""Every scenario of `tests.chaos` in its short form; ``make chaos`` runs the long ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("soundfile", reason="needs the extra audio")
pytest.importorskip("av", reason="needs the extra video")

from tests.chaos.harness import Arena
from tests.chaos.oracle import Oracle
from tests.chaos.results import Check, Found, markdown, read, write
from tests.chaos.scenarios import SCENARIOS, Scenario

SHORT = [each for each in SCENARIOS if each.short]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("chaos"))


@pytest.mark.parametrize("scenario", SHORT, ids=lambda scenario: scenario.name)
def test_scenario(scenario: Scenario, oracle: Oracle, tmp_path: Path) -> None:
    found = asyncio.run(scenario.run(Arena(oracle, tmp_path, scenario.short)))
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
        assert read(path) == {"a": self.first}

    def test_what_was_missed_stands_out(self) -> None:
        table = markdown({}, [self.first, self.second])
        assert table.count("**missed**") == 1
        assert "slowest: 3 s (at most 2) **missed**" in table
