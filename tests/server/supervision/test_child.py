"""The environment of a child process."""

import os
from pathlib import Path

import pytest

from server.supervision.child import environment

ROOT = str(Path(__file__).resolve().parents[3])


def test_a_child_does_not_get_the_api_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOME_API_KEYS", "secret")
    monkeypatch.setenv("TOME_DEVICE", "cpu")
    inherited = environment()
    assert "TOME_API_KEYS" not in inherited
    assert inherited["TOME_DEVICE"] == "cpu"


def test_the_operator_can_override_the_spin_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert environment()["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert environment()["GOMP_SPINCOUNT"] == "7"


def test_this_package_comes_first_in_the_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert environment()["PYTHONPATH"] == ROOT
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert environment()["PYTHONPATH"] == os.pathsep.join([ROOT, "/elsewhere"])
