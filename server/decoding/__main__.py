"""A decode worker: ``python -m server.decoding SOCKET ADDRESS_SPACE MODALITY=DECODER ...``.

The arguments are the inherited descriptor of the socket to the API process, the most bytes of
memory, and what decodes each modality as ``module:function``. `server.decoding.process` starts it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import NoReturn

# The API process decides when a worker ends: what is being decoded at a stop is still answered.
for _signal in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(_signal, signal.SIG_IGN)

from server.decoding import worker  # noqa: E402


def run_process() -> NoReturn:
    """Run the worker, and end the process."""
    descriptor, address_space, *assignments = sys.argv[1:]
    decoders = dict(assignment.split("=", 1) for assignment in assignments)
    exit_code = 1
    with contextlib.suppress(ConnectionError):  # the API process has ended
        connection = socket.socket(fileno=int(descriptor))
        exit_code = worker.run(connection, decoders, int(address_space))
    # Nothing is on disk, so the orderly shutdown of the libraries is skipped.
    os._exit(exit_code)


if __name__ == "__main__":
    run_process()
