"""How many connections the limit on open files allows."""

from __future__ import annotations

import resource

import pytest

from server.api.transport.listener import OTHER_FILES, allow_connections

UNLIMITED = resource.RLIM_INFINITY


@pytest.fixture
def file_limits(monkeypatch):
    """Replace the process's limits on open files; the list has the last ones that were set."""
    limits: list[int] = []

    def set_limits(soft: int, hard: int) -> list[int]:
        limits[:] = [soft, hard]
        return limits

    def getrlimit(_: int) -> tuple[int, ...]:
        return tuple(limits)

    def setrlimit(_: int, new: tuple[int, int]) -> None:
        limits[:] = new

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    return set_limits


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "allowed"),
    [
        (1024, UNLIMITED, 2000 + OTHER_FILES, 2000),
        (1024, 4096, 2000 + OTHER_FILES, 2000),
        (1024, 1500, 1500, 1500 - OTHER_FILES),
        (10, 20, 20, 1),  # one connection is always allowed
        (4096, 4096, 4096, 2000),
        (UNLIMITED, UNLIMITED, UNLIMITED, 2000),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_the_hard_one(file_limits, soft, hard, raised, allowed):
    limits = file_limits(soft, hard)
    assert allow_connections(2000) == allowed
    assert limits == [raised, hard]


def test_fewer_connections_than_wanted_are_logged(file_limits, caplog):
    file_limits(200, 200)
    assert allow_connections(1000) == 200 - OTHER_FILES
    assert "allows only 72 connections" in caplog.text
