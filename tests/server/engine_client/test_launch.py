"""Settings become the configuration of the engines."""

from __future__ import annotations

import pytest

from server.engine_client import launch
from server.engine_client.health import HealthPolicy
from server.metrics import Metrics
from server.settings import Settings


def test_timeouts_reach_the_health_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[HealthPolicy] = []
    monkeypatch.setattr(
        launch, "EnginePool", lambda configs, policy, **callbacks: given.append(policy)
    )
    launch.create_pool(Settings(start_timeout=7, heartbeat_timeout=3), Metrics(levels=()))
    assert given == [HealthPolicy(start_timeout=7, heartbeat_timeout=3)]
