"""Settings shared by all tests: one thread, and reproducible hypothesis runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

# Tests run beside other work on few cores; more threads only wait for one another. NumPy's library
# reads it when it is loaded.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.server.conftest import RunningServer

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


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Undo what a command configures for the whole process."""
    loggers = [logging.getLogger(), logging.getLogger("tome"), logging.getLogger("uvicorn")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers = handlers


@pytest.fixture(scope="session")
def default_server() -> Iterator[RunningServer]:
    """A real server as it is without settings, for tests of what people do with it."""
    from tests.server.conftest import run_server

    with run_server() as running:
        yield running


@pytest.fixture(scope="session")
def ear_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of three tiny models, of images, sound and video; the last one needs PyAV.

    See `tests.server.tiny_ear` and `tests.server.tiny_clip`.
    """
    pytest.importorskip("soundfile", reason="needs the extra audio")
    from tests.server import tiny_clip, tiny_ear
    from tests.server.conftest import run_server

    config = tiny_ear.write_models(tmp_path_factory.mktemp("ear"))
    if find_spec("av") is not None:
        tiny_clip.add_clip(config)
    # A busy machine may take long to decode.
    with run_server(
        config=config, levels="0,2", dtype="float32", media_decode_timeout=30
    ) as running:
        yield running


@pytest.fixture(scope="session")
def clip_server(ear_server: RunningServer) -> RunningServer:
    """The same server, where it has the model of video."""
    pytest.importorskip("av", reason="needs the extra video")
    return ear_server
