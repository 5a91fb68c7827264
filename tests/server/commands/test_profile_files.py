"""What one task of ``evaluate`` measured stays in the profile when the other is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from server.catalog.profiles import ProfileRow, read_profile, write_profile
from server.commands.profile_files import (
    KnownProfile,
    open_profile,
    with_embeddings,
    write_accuracies,
    write_embeddings,
)
from server.errors import ConfigError

IDENTITY = {"model": "tiny", "weights": "abc"}


def row(r: str, accuracy: float | None = None, cosine: float | None = None) -> ProfileRow:
    return ProfileRow(
        r, accuracy, 9, 0.7, 100.0, 1.3, cosine=cosine, merging="paper", prop_attn=True
    )


def test_a_row_takes_the_quality_of_embeddings_of_its_counterpart() -> None:
    rows = [row("0", 90.5), row("8", 89.5)]
    measured = [replace(row("8", cosine=0.98), speedup=2.0, recall_10=90.0), row("16", cosine=0.9)]
    pairs = replace(measured[0], merging="pairs")
    found = with_embeddings(rows, [*measured, pairs])
    assert found == [
        rows[0],
        replace(rows[1], cosine=0.98, recall_10=90.0),
        measured[1],
        pairs,
    ]


def test_either_task_keeps_what_the_other_measured(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    assert open_profile(path, IDENTITY) == KnownProfile()
    write_embeddings(path, KnownProfile(), [row("8", cosine=0.98)], IDENTITY, {"images": 5})
    assert json.loads(path.read_text())["embeddings"] == {"images": 5}
    accuracies = [row("0", 90.5), row("8", 89.5)]
    write_accuracies(path, accuracies, {**IDENTITY, "images": 100})
    both = [accuracies[0], replace(accuracies[1], cosine=0.98)]
    assert read_profile(path) == both
    known = open_profile(path, IDENTITY)
    write_embeddings(path, known, [row("8", cosine=0.97)], IDENTITY, {"images": 7})
    assert read_profile(path) == [accuracies[0], replace(accuracies[1], cosine=0.97)]
    content = json.loads(path.read_text())
    assert (content["images"], content["embeddings"]) == (100, {"images": 7})
    # Of other weights nothing is kept.
    write_accuracies(path, accuracies, {**IDENTITY, "weights": "xyz"})
    assert read_profile(path) == accuracies
    assert "embeddings" not in json.loads(path.read_text())
    path.write_text("")
    write_accuracies(path, accuracies, IDENTITY)
    assert read_profile(path) == accuracies


def test_a_profile_to_which_nothing_can_be_added_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    write_profile(path, [row("8", 89.5)], IDENTITY)
    for other in ({**IDENTITY, "model": "other"}, {**IDENTITY, "weights": "xyz"}):
        with pytest.raises(ConfigError, match="of another model or other weights"):
            open_profile(path, other)
    # `tune` names no weights.
    write_profile(path, [row("8")], {"model": "tiny"})
    assert open_profile(path, IDENTITY).rows == [row("8")]
    write_profile(path, [replace(row("8"), merging=None)], IDENTITY)
    with pytest.raises(ConfigError, match="does not say under which rule"):
        open_profile(path, IDENTITY)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is no profile"):
        open_profile(path, IDENTITY)
