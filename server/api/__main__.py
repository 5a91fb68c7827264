"""An API process: ``python -m server.api CONTROL SLOTS BOARD METRICS``.

The arguments are inherited file descriptors: of the channel to the parent process, of the shared
memory with the slots, of the board, and of the memory of the metrics.
`server.supervision.api_process` starts it.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from typing import NoReturn

from server import logs
from server.ipc.api_config import ApiConfig
from server.ipc.board import Board
from server.ipc.channel import Channel, ChannelClosed
from server.ipc.packing import check_type
from server.metrics.memory import MetricsMemory

log = logging.getLogger("tome.server")

# For Ctrl-C, the parent decides when this process ends; the others are for the parent alone.
for _signal in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(_signal, signal.SIG_IGN)


def main(control: int, slots: int, board: int, metrics: int) -> int:
    """Serve until the parent process says that this one ends. Returns the exit code."""
    connection = socket.socket(fileno=control)
    try:
        config = check_type(Channel(connection).receive(), ApiConfig)
    except ChannelClosed:
        return 0  # the parent has ended
    logs.configure(config.settings.log_level)
    with logs.log_step(log, "importing the HTTP server"):
        from server.api.lifecycle import run

    size = config.board
    memory = MetricsMemory(metrics, size.workers, size.engine_rows)
    return run(config, connection, slots, Board(board, size), memory)


def run_process() -> NoReturn:
    """Run `main` with the descriptors of the command line, and end the process."""
    try:
        exit_code = main(*map(int, sys.argv[1:5]))
    except Exception:
        log.critical("an API process failed", exc_info=True)
        exit_code = 1
    sys.stderr.flush()
    os._exit(exit_code)  # nothing is left to do, and threads may still decode


if __name__ == "__main__":
    run_process()
