"""The engine process: ``python -m server.engine SOCKET MEMORY PAGE``, three inherited descriptors; see `client`."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from typing import NoReturn

from server import logs
from server.engine.heartbeat import start_heartbeat
from server.errors import ConfigError, DeviceLost, UnsafeAcceleration
from server.ipc.channel import Channel, ChannelClosed
from server.ipc.engine_config import EngineConfig
from server.ipc.heartbeat import HeartbeatPage
from server.ipc.messages import Ready, SlotsReady, StartFailed

log = logging.getLogger("tome.engine")

EXIT_DEVICE_LOST = 3

# Only the API process decides when to stop, and says so over the channel; ignored before the slow
# imports begin.
for _signal in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_signal, signal.SIG_IGN)


def main(socket_descriptor: int, memory: int, page_descriptor: int) -> int:
    """Load, say that we are ready, serve until told to stop. Returns the exit code."""
    channel = Channel(socket.socket(fileno=socket_descriptor))
    page = HeartbeatPage(page_descriptor)
    start_heartbeat(page)
    try:
        config: EngineConfig = channel.receive()
        logs.configure(config.log_level)
        return serve(channel, config, memory, page)
    except ChannelClosed:
        return 0  # the API process is gone, and with it everyone who could want an answer
    except DeviceLost as error:
        log.critical("%s; this process ends", error, exc_info=error.__cause__)
        return EXIT_DEVICE_LOST


def serve(channel: Channel, config: EngineConfig, memory: int, page: HeartbeatPage) -> int:
    """The engine's life, from its configuration on."""
    # Imported late: torch and timm take seconds, in which the configuration's errors should not
    # have to wait.
    from server.engine.loop import Loop
    from server.engine.scheduling.batch_builder import Bounds
    from server.engine.scheduling.scheduler import Scheduler
    from server.engine.startup import start_models
    from server.ipc.shared_memory import Slots

    try:
        models, described = start_models(config)
    except ConfigError as error:
        channel.send(StartFailed(str(error)))
        return 1
    except UnsafeAcceleration as error:
        log.error("%s", error, exc_info=error.__cause__)
        channel.send(StartFailed(str(error), error.safer))
        return EXIT_DEVICE_LOST
    except Exception as error:
        log.exception("the engine could not start")
        channel.send(
            StartFailed(
                f"the engine could not start: {type(error).__name__}; its log has the details"
            )
        )
        return 1
    largest = max(4 * _elements(info.transform.size) for info in described)
    estimates = {name: served.calibration.estimate for name, served in models.items()}
    channel.send(Ready(described, slot_bytes=largest, estimates=estimates))
    begin = channel.receive()
    assert isinstance(begin, SlotsReady)
    slots = Slots(memory, config.slots, begin.slot_bytes)
    bounds = Bounds(config.max_batch, config.max_batch_work or config.max_batch)
    scheduler = Scheduler(bounds, config.target_seconds, lambda model: models[model].calibration)
    Loop(channel, scheduler, models, slots, page).run()
    return 0


def _elements(size: tuple[int, int, int]) -> int:
    return size[0] * size[1] * size[2]


def run_process() -> NoReturn:
    """`main` with the descriptors of the command line, and the end of the process."""
    try:
        code = main(*map(int, sys.argv[1:4]))
    except Exception:
        log.critical("the engine failed", exc_info=True)
        code = 1
    sys.stderr.flush()
    # Everything has been sent and nothing is on disk; taking torch apart in order would hold the
    # stop up for seconds.
    os._exit(code)


if __name__ == "__main__":
    run_process()
