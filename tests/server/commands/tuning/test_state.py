"""The state comes back as it was written, for the same measurement alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.commands.tuning.rule_choice import MergingRule
from server.commands.tuning.state import (
    SAVE_SECONDS,
    LevelRecord,
    RuleRecord,
    StateFile,
    TuningState,
    fingerprint,
)
from server.errors import ConfigError


def state() -> TuningState:
    level = LevelRecord(11, 0.5, [0.25, 0.5], [1, 2, 0], [0.1, 0.2, 1 / 3], [0.9, 1.0, 0.8], [])
    record = RuleRecord({"8": level}, 4, [2, 1], [0.3, 0.4], {"b.png": "no picture"})
    rules = {MergingRule("paper", True): record, MergingRule("pairs", False): RuleRecord({})}
    return TuningState({"dtype": "float32", "threads": 1}, rules)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "s", "one")
    file.write(state(), now=True)
    read = file.read()
    assert read == state()
    assert read is not None
    assert read.rules[MergingRule("paper", True)].measured == 3
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    file.remove()
    file.remove()
    assert file.read() is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": "one", "rules": 1}'])
def test_a_file_of_something_else_is_not_read(tmp_path: Path, content: str) -> None:
    path = tmp_path / "s"
    path.write_text(content)
    assert StateFile(path, "one").read() is None


def test_the_state_of_another_measurement_is_not_read(tmp_path: Path) -> None:
    StateFile(tmp_path / "s", "one").write(state(), now=True)
    assert StateFile(tmp_path / "s", "two").read() is None


def test_it_is_not_written_at_every_call(tmp_path: Path) -> None:
    time = 0.0
    file = StateFile(tmp_path / "s", "one", clock=lambda: time)
    file.write(TuningState())
    file.write(state())
    assert file.read() == TuningState()
    time = SAVE_SECONDS
    file.write(state())
    assert file.read() == state()


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*: No such file"):
        StateFile(tmp_path / "none" / "s", "one").write(state())


def test_a_fingerprint_tells_measurements_apart() -> None:
    assert fingerprint("m", [1, 2]) == fingerprint("m", [1, 2])
    assert len({fingerprint("m", [1, 2]), fingerprint("m", [1]), fingerprint("n", [1, 2])}) == 3
