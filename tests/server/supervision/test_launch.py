"""Settings become the configuration of the engines."""

from __future__ import annotations

import pytest

from server.catalog.entries import open_catalog
from server.ipc.engine_config import EngineConfig
from server.settings import Settings
from server.supervision import launch
from server.supervision.health import HealthPolicy
from server.supervision.shared import SharedMemory


def test_timeouts_reach_the_health_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[HealthPolicy] = []
    monkeypatch.setattr(
        launch, "EngineGroup", lambda configs, policy, *others: given.append(policy)
    )
    create_engines(Settings(start_timeout=7, heartbeat_timeout=3))
    assert given == [HealthPolicy(start_timeout=7, heartbeat_timeout=3)]


def test_each_engine_gets_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[EngineConfig] = []
    monkeypatch.setattr(launch, "EngineGroup", lambda configs, *others: given.extend(configs))
    create_engines(Settings(device="cpu,cpu", cpu_isa="none"))
    assert [(config.engine, config.cpu_isa) for config in given] == [(0, "none"), (1, "none")]


def create_engines(settings: Settings) -> None:
    shared = SharedMemory.create(launch.board_size(settings))
    devices = range(len(settings.devices))
    launch.create_engines(settings, shared, lambda name: None, open_catalog(None, ()), 0, devices)
    shared.close()
