"""The engine process: ``python -m server.engine CONTROL SLOTS BOARD METRICS``.

The arguments are inherited file descriptors: of the channel to the parent process, which starts the
engine; of the shared memory with the slots; of the board; and of the memory for metrics.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

from server import logs
from server.engine.heartbeat import ParentWatch, start_heartbeat
from server.errors import ConfigError, DeviceLost, UnsafeAcceleration
from server.ipc.board import Board, EngineRow
from server.ipc.channel import Channel, ChannelClosed
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import BatchDone, Ready, SlotsReady, StartFailed
from server.ipc.packing import check_type
from server.metrics.engine import EngineMetrics
from server.metrics.memory import MetricsMemory

log = logging.getLogger("tome.engine")

EXIT_DEVICE_LOST = 3

# Only the parent process decides when the engine stops, by a message. Signals are ignored before
# the slow imports begin.
for _signal in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(_signal, signal.SIG_IGN)


def main(control: int, memory: int, board: int, metrics: int) -> int:
    """Load the models, report that they are ready, and serve until stopped.

    Args:
        control, memory, board, metrics: the descriptors of the command line.

    Returns:
        The exit code.
    """
    connection = socket.socket(fileno=control)
    watch = ParentWatch(control)
    channel = Channel(connection, descriptors=True)
    try:
        config = check_type(channel.receive(), EngineConfig)
        logs.configure(config.log_level)
        size = config.board
        row = Board(board, size).engines[config.engine]
        start_heartbeat(row, watch)
        metrics_memory = MetricsMemory(metrics, size.workers, size.engine_rows)
        counted = EngineMetrics(metrics_memory, config.engine)
        return serve(channel, config, memory, row, counted.observe_batch)
    except ChannelClosed:
        return 0  # the parent process has ended, so nobody waits for an answer
    except DeviceLost as error:
        log.critical("%s; this process ends", error, exc_info=error.__cause__)
        return EXIT_DEVICE_LOST


def serve(
    control: Channel,
    config: EngineConfig,
    memory: int,
    row: EngineRow,
    on_batch: Callable[[BatchDone], None],
) -> int:
    """Start the models and run the loop. Returns the exit code."""
    # Imported late: torch and timm take seconds, and errors of the configuration come first.
    with logs.log_step(log, f"importing PyTorch and timm for device {config.device}"):
        from server.engine.clients import Clients
        from server.engine.loop import Loop
        from server.engine.scheduling.scheduler import Scheduler
        from server.engine.startup import start_models
        from server.ipc.shared_memory import Slots, largest_input_bytes
        from server.latency.queue_model import Bounds
    # What was imported lives to the end. Collections that skip it are shorter, by 0.2 s; one before
    # this would take as long.
    gc.freeze()

    try:
        models, model_infos = start_models(config)
    except Exception as error:
        return report_failed_start(control, error)
    calibrations = {name: served.calibration for name, served in models.items()}
    cost_models = {name: calibrated.cost_model for name, calibrated in calibrations.items()}
    slot_bytes = largest_input_bytes(info.transform.size for info in model_infos)
    control.send(Ready(model_infos, slot_bytes=slot_bytes, cost_models=cost_models))
    slots_ready = check_type(control.receive(), SlotsReady)
    slots = Slots(memory, config.board.slots, slots_ready.slot_bytes, slots_ready.offset)
    bounds = Bounds(config.max_batch, config.max_batch_work or config.max_batch)
    scheduler = Scheduler(bounds, config.target_seconds, calibrations)
    clients = Clients(control, scheduler)
    Loop(clients, scheduler, models, slots, row, on_batch).run()
    return 0


def report_failed_start(control: Channel, error: Exception) -> int:
    """Tell the parent process why the models could not be started. Returns the exit code."""
    if isinstance(error, ConfigError):
        control.send(StartFailed(str(error)))
        return 1
    if isinstance(error, UnsafeAcceleration):
        log.error("%s", error, exc_info=error.__cause__)
        control.send(StartFailed(str(error), error.safer))
        return EXIT_DEVICE_LOST
    log.error("the engine could not start", exc_info=error)
    name = type(error).__name__
    control.send(StartFailed(f"the engine could not start: {name}; its log has the details"))
    return 1


def lowest_number(descriptor: int) -> int:
    """Move an inherited file to the lowest free descriptor, and return that.

    It comes with the number that it has in the parent process, which may be large. Libraries may
    call select(), which takes numbers up to 1023.
    """
    moved = os.dup(descriptor)
    os.close(descriptor)
    return moved


def run_process() -> NoReturn:
    """Run `main` with the descriptors of the command line, and end the process."""
    try:
        descriptors = [lowest_number(int(argument)) for argument in sys.argv[1:5]]
        exit_code = main(*descriptors)
    except Exception:
        log.critical("the engine failed", exc_info=True)
        exit_code = 1
    sys.stderr.flush()
    # Everything is sent and nothing is on disk, so the slow orderly shutdown of torch is skipped.
    os._exit(exit_code)


if __name__ == "__main__":
    run_process()
