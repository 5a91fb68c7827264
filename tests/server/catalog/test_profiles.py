from dataclasses import replace
from pathlib import Path

import pytest

from server.catalog.profiles import (
    ProfileRow,
    cascade_rows,
    profiled_model,
    read_accuracies,
    read_profile,
    read_rule_profile,
    write_profile,
)
from server.errors import ConfigError

ROWS = [
    ProfileRow("0", accuracy=90.5, tokens=17, relative_flops=1, images_per_s=100.0, speedup=1.0),
    ProfileRow("8", accuracy=89.5, tokens=9, relative_flops=0.7, images_per_s=130.0, speedup=1.3),
]


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_profile(path, ROWS, {"model": "tiny", "device": "cpu"})
    assert read_profile(path) == ROWS
    assert profiled_model(path) == "tiny"


def test_only_rows_of_the_rule_count(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    first, second = ROWS
    paper = [replace(first, merging="paper", prop_attn=True)]
    pairs = [replace(row, accuracy=None, merging="pairs", prop_attn=False) for row in ROWS]
    write_profile(path, [*pairs, *paper], {})
    assert read_rule_profile(path, "paper", True) == {"0": paper[0]}
    assert read_rule_profile(path, "pairs", False) == {"0": pairs[0], "8": pairs[1]}
    assert read_accuracies(path) == {"0": 90.5}
    message = (
        'was measured under merging = "pairs", prop_attn = false and under .* change its entry'
    )
    with pytest.raises(ConfigError, match=message):
        read_rule_profile(path, "pairs", True)
    better = replace(first, accuracy=91.0, merging="nearest", prop_attn=True)
    write_profile(path, [*pairs, *paper, better], {})
    assert read_accuracies(path) == {"0": 90.5}
    # Before the rule was written, there was no other.
    write_profile(path, ROWS, {})
    assert read_rule_profile(path, "pairs", False) == {"0": first, "8": second}


def test_a_profile_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*: No such file"):
        write_profile(tmp_path / "none" / "profile.json", ROWS, {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"levels": [{"r": "0"}]}',
        '{"levels": [{"r": "0", "unknown": 1}]}',
    ],
)
def test_another_file_is_no_profile(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    message = "is no profile that tome-serve evaluate or tune wrote"
    with pytest.raises(ConfigError, match=message):
        read_profile(path)
    with pytest.raises(ConfigError, match=message):
        profiled_model(path)


def test_a_missing_file_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no profile"):
        read_profile(tmp_path / "none.json")


def test_a_cascade_costs_its_first_passes_and_the_share_of_second_ones() -> None:
    measured = replace(ROWS[1], speedup=2.0, second_passes=10.0, cascade_accuracy=90.25)
    (row,) = cascade_rows([ROWS[0], measured])
    assert (row.r, row.accuracy) == ("8", 90.25)
    assert row.speedup == pytest.approx(1 / (0.5 + 0.1))
