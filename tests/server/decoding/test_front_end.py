"""The real decoder in confined workers: what it needs, it has."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest

from server.decoding.pool import DecodePool
from server.errors import RequestError
from server.media.limits import AudioLimits
from server.media.transforms import AudioTransform
from tests.server.decoding.pools import PATIENCE

soundfile = pytest.importorskip("soundfile")
front_end = pytest.importorskip("server.audio.front_end")

TRANSFORM = AudioTransform(frames=64, mean=-4.27, std=4.57, time_last=True, subtract_mean=True)
FORMATS = [("WAV", "PCM_24"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")]
SAMPLE_RATE = 22_050


def encode(name: str, subtype: str) -> bytes:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * SAMPLE_RATE, 2))
    body = io.BytesIO()
    soundfile.write(body, noise, SAMPLE_RATE, format=name, subtype=subtype)
    return body.getvalue()


def test_workers_decode_as_this_process_does() -> None:
    sounds = [encode(*sound) for sound in FORMATS]
    wrong = [b"", b"no sound", sounds[0][:60], sounds[1][:2_000]]
    limits = AudioLimits()

    async def main() -> None:
        pool = DecodePool(1, limits, PATIENCE)
        await pool.start()
        try:
            for body in sounds:
                expected = front_end.prepare(body, TRANSFORM, limits)
                decoded = await pool.decode(body, TRANSFORM)
                np.testing.assert_array_equal(decoded.inputs, expected.inputs)
                assert (decoded.windows, decoded.media) == (expected.windows, expected.media)
            for body in wrong:
                with pytest.raises(RequestError) as expected_error:
                    front_end.prepare(body, TRANSFORM, limits)
                with pytest.raises(type(expected_error.value)) as error:
                    await pool.decode(body, TRANSFORM)
                assert error.value.detail == expected_error.value.detail
        finally:
            await pool.stop()

    asyncio.run(main())
