"""Pools of real workers with the decoder of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from server.decoding.pool import DecodePool
from server.media.limits import AudioLimits, MediaLimits, VideoLimits
from server.media.modality import Modality
from server.media.transforms import AudioTransform, MediaTransform, VideoTransform

DECODER = "tests.server.decoding.decoders:decode"
DECODERS = {Modality.AUDIO: DECODER, Modality.VIDEO: "tests.server.decoding.decoders:decode_video"}
SOUND = (Modality.AUDIO,)
TRANSFORM = AudioTransform(
    frames=8, mean=0.0, std=0.5, time_last=True, subtract_mean=False, mel_bins=4
)
CLIP = VideoTransform(frames=2, tubelet=2, height=4, width=8, resize=4, clips=2, crops=3)
LIMITS: Mapping[Modality, MediaLimits] = {
    Modality.AUDIO: AudioLimits(max_windows=3),
    Modality.VIDEO: VideoLimits(),
}
PATIENCE = 60.0  # seconds, on a busy machine


@contextlib.asynccontextmanager
async def running_pool(
    workers: int = 1,
    timeout: float = PATIENCE,
    limits: Mapping[Modality, MediaLimits] = LIMITS,
    modalities: tuple[Modality, ...] = SOUND,
    **options: Any,
) -> AsyncIterator[DecodePool]:
    pool = DecodePool(workers, limits, timeout, **({"decoders": DECODERS} | options))
    await pool.start(modalities)
    try:
        yield pool
    finally:
        await pool.stop()


async def value(
    pool: DecodePool, body: bytes | str, transform: MediaTransform = TRANSFORM
) -> float:
    """The value of all inputs that ``body`` becomes."""
    encoded = body if isinstance(body, bytes) else body.encode()
    decoded = await pool.decode(encoded, transform)
    (found,) = set(decoded.inputs.ravel().tolist())
    return found


async def tasks_have_started() -> None:
    """Let new tasks run until they wait: for the reply of a worker, or for a worker."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds."""
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit
        await asyncio.sleep(0.01)


def children() -> set[int]:
    """The workers that this process has started and not waited for, zombies included.

    Other tests leave servers that run for the whole session.
    """
    texts = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            texts.append((task / "children").read_text())
    return {int(number) for text in texts for number in text.split() if _is_worker(number)}


def _is_worker(number: str) -> bool:
    try:
        arguments = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):  # it has been waited for
        return False
    is_zombie = arguments == [b""]
    return is_zombie or b"server.decoding" in arguments


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
