"""The real decoder in confined workers: what it needs, it has."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest

from server.decoding.pool import DECODERS, DecodePool
from server.errors import RequestError, TooLarge
from server.media.limits import AudioLimits
from server.media.modality import Modality
from server.media.transforms import AudioTransform
from tests.server.decoding.conftest import ADDRESS_SPACE
from tests.server.decoding.pools import running_pool, until

soundfile = pytest.importorskip("soundfile")
front_end = pytest.importorskip("server.audio.front_end")

from tests.hostile.build_sounds import wav  # noqa: E402

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
        async with running_pool(limits={Modality.AUDIO: LIMITS}, decoders=DECODERS) as pool:
            for sound in FORMATS:
                body = encode(*sound)
                expected = front_end.prepare(body, TRANSFORM, LIMITS)
                decoded = await pool.decode(body, TRANSFORM)
                np.testing.assert_array_equal(decoded.inputs, expected.inputs)
                assert (decoded.windows, decoded.media) == (expected.windows, expected.media)

    asyncio.run(main())


def test_a_sound_that_takes_more_memory_than_a_worker_has_is_too_large() -> None:
    limits = AudioLimits(max_seconds=10_000, max_pcm_bytes=10**9)
    body = wav(bytes(31_000_000), bits=8)  # its samples alone take four times as much, twice
    lost: list[str] = []

    async def main() -> None:
        async with running_pool(
            limits={Modality.AUDIO: limits},
            decoders=DECODERS,
            address_space=ADDRESS_SPACE,
            on_worker_lost=lost.append,
        ) as pool:
            with pytest.raises(TooLarge, match="more than 300 MB of memory"):
                await pool.decode(body, TRANSFORM)
            await until(lambda: bool(lost))

    asyncio.run(main())
    assert lost == ["memory"]


def test_hostile_sounds_cost_no_worker() -> None:
    sounds = pytest.importorskip("tests.hostile.sounds").hostile_sounds()
    lost: list[str] = []

    async def main() -> None:
        async with running_pool(
            limits={Modality.AUDIO: LIMITS}, decoders=DECODERS, on_worker_lost=lost.append
        ) as pool:
            found = {name: await outcome(pool, body) for name, (body, _) in sounds.items()}
            assert found == {name: status for name, (_, status) in sounds.items()}

    asyncio.run(main())
    assert lost == []
