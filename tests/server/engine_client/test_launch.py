"""Settings become the configuration of the engines."""

from __future__ import annotations

import pytest

from server.engine_client import launch
from server.engine_client.health import HealthPolicy
from server.ipc.engine_config import EngineConfig
from server.metrics.api import Metrics
from server.settings import Settings


def test_timeouts_reach_the_health_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[HealthPolicy] = []
    monkeypatch.setattr(
        launch, "EngineGroup", lambda configs, policy, **callbacks: given.append(policy)
    )
    launch.create_engines(Settings(start_timeout=7, heartbeat_timeout=3), Metrics())
    assert given == [HealthPolicy(start_timeout=7, heartbeat_timeout=3)]


def test_each_engine_gets_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[EngineConfig] = []
    monkeypatch.setattr(
        launch, "EngineGroup", lambda configs, policy, **callbacks: given.extend(configs)
    )
    launch.create_engines(Settings(device="cpu", cpu_isa="none"), Metrics())
    (config,) = given
    assert config.cpu_isa == "none"
