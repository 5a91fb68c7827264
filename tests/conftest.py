"""Settings shared by all tests: one thread, and reproducible hypothesis runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.server.conftest import RunningServer

# Tests run beside other work on few cores; more threads only wait for one another.
torch.set_num_threads(1)

# Spans are recorded only where a test says so, also on a machine that configures them for itself.
for name in [name for name in os.environ if name.startswith("OTEL_")]:
    del os.environ[name]

# No deadline, because a busy machine is no failure. `--hypothesis-profile=explore` draws new
# examples every time.
_SLOW_IS_FINE = [HealthCheck.too_slow]
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(
    "explore", deadline=None, max_examples=500, suppress_health_check=_SLOW_IS_FINE
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def default_server() -> Iterator[RunningServer]:
    """A real server as it is without settings, for tests of what people do with it."""
    from tests.server.conftest import run_server

    with run_server() as running:
        yield running


@pytest.fixture(scope="session")
def ear_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of a tiny model of images and one of sound; see `tests.server.tiny_ear`."""
    pytest.importorskip("soundfile", reason="needs the extra audio")
    from tests.server.conftest import run_server
    from tests.server.tiny_ear import write_models

    config = write_models(tmp_path_factory.mktemp("ear"))
    with run_server(config=config, levels="0,2") as running:
        yield running
