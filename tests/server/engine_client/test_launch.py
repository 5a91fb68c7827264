"""Settings reach the engines."""

from __future__ import annotations

import pytest

from server.engine_client import launch
from server.engine_client.health import HealthPolicy
from server.metrics import Metrics
from server.settings import Settings


def test_how_much_of_an_engine_is_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[HealthPolicy] = []
    monkeypatch.setattr(
        launch, "EnginePool", lambda configs, patience, **callbacks: given.append(patience)
    )
    launch.launch(Settings(start_timeout=7, heartbeat_timeout=3), Metrics(levels=()))
    assert given == [HealthPolicy(start=7, silent=3)]
