"""Python imports this at its start where its folder is in PYTHONPATH: it records calls.

The first SIGUSR2 starts the recording; every further one writes what was called so far, a line for
each call of a function of ``server`` or ``tome_core``: time and module.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

ROOT = f"{Path(__file__).parents[3]}/"
RECORDED = (f"{ROOT}server/", f"{ROOT}tome_core/")
calls: list[tuple[float, str]] = []


def record(frame: FrameType, event: str, _: object) -> None:
    """A profile function; see `sys.setprofile`."""
    file = frame.f_code.co_filename
    if event == "call" and file.startswith(RECORDED):
        calls.append((time.monotonic(), file.removeprefix(ROOT)))


def on_signal(*_: object) -> None:
    folder = Path(os.environ["CALLS_FOLDER"])
    lines = [f"{at} {module}\n" for at, module in calls]
    threading.setprofile(record)
    sys.setprofile(record)
    new = folder / f"{os.getpid()}.new"
    new.write_text("".join(lines))
    new.replace(folder / f"{os.getpid()}.txt")


signal.signal(signal.SIGUSR2, on_signal)
