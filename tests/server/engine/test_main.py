"""The engine process up to its loop: failed starts, exit codes, and the size of slots."""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from server.catalog.entries import ModelSpec
from server.errors import ConfigError, UnsafeAcceleration
from server.ipc.channel import Channel
from server.ipc.messages import Accelerations, StartFailed
from server.ipc.shared_memory import create_memory
from tests.server.descriptors import descriptors_of
from tests.server.engine.loops import engine_row, ignore
from tests.server.engine.processes import configuration


@pytest.fixture
def engine() -> Iterator[ModuleType]:
    """The module; its import makes the process ignore signals, which is undone here."""
    signals = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in signals]
    yield importlib.import_module("server.engine.__main__")
    for number, handler in zip(signals, handlers, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    """The ends of the parent process and of the engine."""
    parent, engine = socket.socketpair()
    with parent, engine:
        yield Channel(parent), Channel(engine)


SAFER = Accelerations(graphs=False)


@pytest.mark.parametrize(
    ("error", "message", "exit_code"),
    [
        (ConfigError("no such model"), StartFailed("no such model"), 1),
        (UnsafeAcceleration("graphs failed", SAFER), StartFailed("graphs failed", SAFER), 3),
        (
            ValueError("secret path"),
            StartFailed("the engine could not start: ValueError; its log has the details"),
            1,
        ),
    ],
)
def test_a_failed_start_is_reported_to_the_parent_process(
    engine: ModuleType,
    channels: tuple[Channel, Channel],
    error: Exception,
    message: StartFailed,
    exit_code: int,
) -> None:
    parent_channel, engine_channel = channels
    assert engine.report_failed_start(engine_channel, error) == exit_code
    assert parent_channel.receive() == message


def test_an_engine_with_a_wrong_configuration_reports_it_and_ends(
    engine: ModuleType,
    channels: tuple[Channel, Channel],
    tmp_path: Path,
) -> None:
    parent_channel, engine_channel = channels
    missing = ModelSpec(name="tiny", timm="vit_tiny_patch16_224", checkpoint=tmp_path / "no.pth")
    config = configuration(tmp_path, specs=(missing,))
    exit_code = engine.serve(engine_channel, config, create_memory(), engine_row(), ignore)
    assert exit_code == 1
    reply = parent_channel.receive()
    assert isinstance(reply, StartFailed)
    assert "no.pth" in reply.reason


def test_an_inherited_descriptor_moves_to_the_lowest_number(engine: ModuleType) -> None:
    def moves_to_the_lowest() -> bool:
        with tempfile.TemporaryFile() as file:
            lowest = os.dup(file.fileno())
            inherited = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 500)
            os.close(lowest)
            moved = engine.lowest_number(inherited)
            assert descriptors_of(os.fstat(file.fileno())) == {file.fileno(), moved}
            os.close(moved)
            return moved == lowest

    # A thread that opens a file at this moment, as the heartbeat does now and then, takes a number.
    assert any(moves_to_the_lowest() for _ in range(5))
