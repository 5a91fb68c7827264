"""A specification is checked when it is created, and does not show its key."""

from __future__ import annotations

from typing import Any

import pytest

from server.errors import ConfigError
from tome_load.spec import LoadSpec
from tome_load.uploads import Upload

UPLOADS = (Upload("a", b"x"),)
CLOSED_LOOP: dict[str, Any] = {
    "url": "http://x",
    "uploads": UPLOADS,
    "connections": 1,
    "requests": 1,
}


def test_the_key_and_the_uploads_are_not_shown() -> None:
    shown = repr(LoadSpec(**CLOSED_LOOP, key="secret"))
    assert "secret" not in shown
    assert "Upload" not in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "x:80"}, "is not the URL of a server"),
        ({"url": "http://"}, "is not the URL of a server"),
        ({"rate": 1}, "either a rate"),
        ({"connections": None}, "either a rate"),
        ({"duration": 1}, "either a duration"),
        ({"requests": None}, "either a duration"),
        ({"timeout": 0}, "timeout must be above 0, got 0"),
        ({"connections": -1}, "connections must be above 0"),
        ({"deadline_ms": float("inf")}, "deadline_ms must be above 0"),
        ({"warmup": -1}, "warmup must not be negative"),
        ({"uploads": ()}, "at least one upload"),
        ({"r": ()}, "one r"),
    ],
)
def test_values_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoadSpec(**{**CLOSED_LOOP, **change})
