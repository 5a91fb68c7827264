"""`python -m benchmarks.tuning` on made-up measurements."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tuning
from benchmarks.tuning import Cell
from server.commands.flags import TuneCommand
from server.commands.tuning.rule_choice import MergingRule
from server.commands.tuning.state import LevelRecord, RuleRecord, TuningState

PICTURES = 200


def level(differing: int) -> LevelRecord:
    """A level that changes the class of the first pictures, and all features a little."""
    generator = np.random.default_rng(differing)
    return LevelRecord(
        tokens=11,
        relative_flops=0.5,
        classes=[1] * differing + [0] * (PICTURES - differing),
        cosines=(1 - generator.exponential(0.01, PICTURES)).tolist(),
    )


STATE = TuningState(
    rules={
        MergingRule("paper", True): RuleRecord({"0": level(0), "8": level(10), "16": level(30)}),
        MergingRule("pairs", True): RuleRecord({"0": level(0), "8": level(4), "16": level(20)}),
    }
)


def test_each_level_but_r0_is_compared_with_r0_of_its_rule() -> None:
    found = list(tuning.cells(STATE))
    assert [cell.name for cell in found] == [
        "paper, r=8",
        "paper, r=16",
        "pairs, r=8",
        "pairs, r=16",
    ]
    assert [int((~cell.agrees).sum()) for cell in found] == [10, 30, 4, 20]


def test_an_interval_holds_or_not() -> None:
    drawn = np.arange(PICTURES) < 100
    alike = Cell("alike", np.arange(PICTURES) % 10 > 0, np.tile([0.9, 0.95], 100))
    assert tuning.holding(alike, drawn) == (True, True)
    # Those that are drawn differ from r=0, and the others do not.
    unlike = Cell("unlike", ~drawn, np.where(drawn, 0.5, 0.99) + np.tile([0, 0.001], 100))
    assert tuning.holding(unlike, drawn) == (False, False)


class FakeTuning:
    """Has measured everything already."""

    state = STATE

    def __init__(self, command: TuneCommand) -> None:
        self.profile = command.profile

    def measure(self) -> None:
        assert self.profile is not None
        assert self.profile.parent.is_dir()


@pytest.mark.usefixtures("restored_logging")
def test_the_table_says_how_often_intervals_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tuning, "begin", FakeTuning)
    out = str(tmp_path / "results")
    assert tuning.main(["--pictures", "100", "--draws", "20", "--out", out]) == 0
    output = capsys.readouterr().out
    assert "20 draws of 100 of 200 pictures" in output
    for name, agreement in (("paper, r=8", "95.00"), ("pairs, r=16", "90.00")):
        assert re.search(
            rf"(?m)^\| {name} \| {agreement} \| [\d.]+ \| 0\.9\d+ \| [\d.]+ \|$", output
        )
    # Half of the pictures say much of the other half: nearly all intervals hold.
    shares = re.findall(r"(?:agreement|cosine): ([\d.]+)% of all intervals hold", output)
    assert len(shares) == 2
    assert all(float(share) > 60 for share in shares)
