"""Decodes videos as a decode worker does, after it has given up all its rights.

The bodies are on standard input; a line is written for each: the status, or ``memory``.
"""

from __future__ import annotations

import json
import os
import sys

from server.decoding import sandbox
from server.errors import RequestError
from server.media.limits import VideoLimits
from server.media.modality import Modality
from server.media.transforms import VideoTransform
from server.video.front_end import prepare
from server.video.warm_up import BODY, TRANSFORM

_CLIP = VideoTransform(frames=8, tubelet=2, height=64, width=64, resize=64)


def status_of(body: bytes) -> int | str:
    try:
        prepare(body, _CLIP, VideoLimits())
    except RequestError as error:
        return error.status
    except MemoryError:
        return "memory"
    return 200


def run() -> None:
    lengths = json.loads(sys.stdin.buffer.readline())
    bodies = [sys.stdin.buffer.read(length) for length in lengths]
    prepare(BODY, TRANSFORM, VideoLimits())
    tasks = os.open("/proc/self/task", os.O_RDONLY)
    missing = sandbox.confine(sandbox.ADDRESS_SPACE_BYTES[Modality.VIDEO])
    # A process of several threads may not leave its namespaces.
    assert "namespaces: Invalid argument" not in missing
    for body in bodies:
        status = status_of(body)
        threads = len(os.listdir(tasks))
        line = f"{status}" if threads == 1 else f"{threads} threads"
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    run()
