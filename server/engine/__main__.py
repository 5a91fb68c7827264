"""The engine process: ``python -m server.engine SOCKET MEMORY PAGE``.

The arguments are inherited file descriptors: of the channel to the API process, of the shared
memory with the slots, and of the heartbeat page. `server.engine_client.process` starts it.
"""

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
from server.ipc.channel import Channel, ChannelClosed, check_type
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import Ready, SlotsReady, StartFailed
from server.ipc.shared_memory import HeartbeatPage

log = logging.getLogger("tome.engine")

EXIT_DEVICE_LOST = 3

# Only the API process decides when the engine stops, by a message. Signals are ignored before the
# slow imports begin.
for _signal in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_signal, signal.SIG_IGN)


def main(socket_descriptor: int, memory: int, page_descriptor: int) -> int:
    """Load the models, report that they are ready, and serve until stopped.

    Returns:
        The exit code.
    """
    channel = Channel(socket.socket(fileno=socket_descriptor))
    page = HeartbeatPage(page_descriptor)
    start_heartbeat(page)
    try:
        config = check_type(channel.receive(), EngineConfig)
        logs.configure(config.log_level)
        return serve(channel, config, memory, page)
    except ChannelClosed:
        return 0  # the API process has ended, so nobody waits for an answer
    except DeviceLost as error:
        log.critical("%s; this process ends", error, exc_info=error.__cause__)
        return EXIT_DEVICE_LOST


def serve(
    channel: Channel,
    config: EngineConfig,
    memory: int,
    page: HeartbeatPage,
) -> int:
    """Start the models and run the loop. Returns the exit code."""
    # Imported late: torch and timm take seconds, and errors of the configuration come first.
    with logs.log_step(log, f"importing PyTorch and timm for device {config.device}"):
        from server.engine.loop import Loop
        from server.engine.scheduling.scheduler import Scheduler
        from server.engine.startup import start_models
        from server.ipc.shared_memory import Slots, largest_input_bytes
        from server.latency.queue_model import Bounds

    try:
        models, model_infos = start_models(config)
    except Exception as error:
        return report_failed_start(channel, error)
    calibrations = {name: served.calibration for name, served in models.items()}
    cost_models = {name: calibrated.cost_model for name, calibrated in calibrations.items()}
    slot_bytes = largest_input_bytes(info.transform.size for info in model_infos)
    channel.send(Ready(model_infos, slot_bytes=slot_bytes, cost_models=cost_models))
    slots_ready = check_type(channel.receive(), SlotsReady)
    slots = Slots(memory, config.slots, slots_ready.slot_bytes)
    bounds = Bounds(config.max_batch, config.max_batch_work or config.max_batch)
    scheduler = Scheduler(bounds, config.target_seconds, calibrations)
    Loop(channel, scheduler, models, slots, page).run()
    return 0


def report_failed_start(channel: Channel, error: Exception) -> int:
    """Tell the API process why the models could not be started. Returns the exit code."""
    if isinstance(error, ConfigError):
        channel.send(StartFailed(str(error)))
        return 1
    if isinstance(error, UnsafeAcceleration):
        log.error("%s", error, exc_info=error.__cause__)
        channel.send(StartFailed(str(error), error.safer))
        return EXIT_DEVICE_LOST
    log.error("the engine could not start", exc_info=error)
    name = type(error).__name__
    channel.send(StartFailed(f"the engine could not start: {name}; its log has the details"))
    return 1


def lowest_number(descriptor: int) -> int:
    """Move an inherited file to the lowest free descriptor, and return that.

    It comes with the number that it has in the API process, which is large where many connections
    are open. Libraries may call select(), which takes numbers up to 1023.
    """
    moved = os.dup(descriptor)
    os.close(descriptor)
    return moved


def run_process() -> NoReturn:
    """Run `main` with the descriptors of the command line, and end the process."""
    try:
        descriptors = [lowest_number(int(argument)) for argument in sys.argv[1:4]]
        exit_code = main(*descriptors)
    except Exception:
        log.critical("the engine failed", exc_info=True)
        exit_code = 1
    sys.stderr.flush()
    # Everything is sent and nothing is on disk, so the slow orderly shutdown of torch is skipped.
    os._exit(exit_code)


if __name__ == "__main__":
    run_process()
