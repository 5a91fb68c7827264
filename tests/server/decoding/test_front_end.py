"""The real decoder in confined workers: what it needs, it has."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest

from server.decoding.pool import DECODER, DecodePool
from server.errors import RequestError
from server.media.limits import AudioLimits
from server.media.transforms import AudioTransform
from tests.server.decoding.pools import running_pool

soundfile = pytest.importorskip("soundfile")
front_end = pytest.importorskip("server.audio.front_end")

TRANSFORM = AudioTransform(frames=1024, mean=-4.27, std=4.57, time_last=True, subtract_mean=True)
LIMITS = AudioLimits()
FORMATS = [("WAV", "PCM_24"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")]
SAMPLE_RATE = 22_050


def encode(name: str, subtype: str) -> bytes:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (12 * SAMPLE_RATE, 2))
    body = io.BytesIO()
    soundfile.write(body, noise, SAMPLE_RATE, format=name, subtype=subtype)
    return body.getvalue()


async def outcome(pool: DecodePool, body: bytes) -> int:
    """The status of what comes of a sound."""
    try:
        await pool.decode(body, TRANSFORM)
    except RequestError as error:
        return error.status
    return 200


def test_workers_decode_as_this_process_does() -> None:
    async def main() -> None:
        async with running_pool(limits=LIMITS, decoder=DECODER) as pool:
            for sound in FORMATS:
                body = encode(*sound)
                expected = front_end.prepare(body, TRANSFORM, LIMITS)
                decoded = await pool.decode(body, TRANSFORM)
                np.testing.assert_array_equal(decoded.inputs, expected.inputs)
                assert (decoded.windows, decoded.media) == (expected.windows, expected.media)

    asyncio.run(main())


def test_hostile_sounds_cost_no_worker() -> None:
    sounds = pytest.importorskip("tests.hostile.sounds").hostile_sounds()
    lost: list[str] = []

    async def main() -> None:
        async with running_pool(limits=LIMITS, decoder=DECODER, on_worker_lost=lost.append) as pool:
            found = {name: await outcome(pool, body) for name, (body, _) in sounds.items()}
            assert found == {name: status for name, (_, status) in sounds.items()}

    asyncio.run(main())
    assert lost == []
