"""The lines for an entry name the profile so that the entry finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.commands.tuning.report import entry_path


def test_an_entry_names_its_profile_relative_to_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    profile = Path("models/p.json")
    assert entry_path(profile, Path("models/models.toml")) == Path("p.json")
    assert entry_path(profile, Path("models.toml")) == profile
    # From another folder the path is absolute.
    assert entry_path(profile, Path("config/models.toml")) == tmp_path.resolve() / profile
    assert entry_path(profile, None) == tmp_path.resolve() / profile
