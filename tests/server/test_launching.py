"""Settings reach the engines."""

from __future__ import annotations

import pytest

from server import launching
from server.engine.health import Patience
from server.metrics import Metrics
from server.settings import Settings


def test_how_much_of_an_engine_is_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Patience] = []
    monkeypatch.setattr(launching, "EnginePool", lambda configs, patience, **callbacks: given.append(patience))
    launching.launch(Settings(start_timeout=7, heartbeat_timeout=3), Metrics(levels=()))
    assert given == [Patience(start=7, silent=3)]
