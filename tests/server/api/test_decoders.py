"""Decode workers run only where a model takes sound or video."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

from server.api.decoders import Decoders
from server.decoding.pool import DecodePool
from server.errors import EngineStartError
from server.media.modality import Modality
from server.settings import Settings
from tests.server.api.pipeline.fakes import AUDIO_MODEL, MODEL, VIDEO_MODEL

LIMITS = Settings().media_limits


def test_workers_start_once_and_with_the_first_model_of_sound() -> None:
    async def main() -> None:
        pool = DecodePool(1, LIMITS, timeout=30)
        decoders = Decoders(lambda: pool)
        try:
            await decoders.start_for([MODEL])
            assert not pool.ready
            # As engines of two devices do.
            models = [MODEL, AUDIO_MODEL]
            await asyncio.gather(decoders.start_for(models), decoders.start_for(models))
            assert pool.ready
        finally:
            await decoders.stop()
        assert not pool.ready

    asyncio.run(main())


def test_workers_decode_what_the_models_take() -> None:
    pytest.importorskip("av")

    async def main() -> None:
        pool = DecodePool(1, LIMITS, timeout=30)
        decoders = Decoders(lambda: pool)
        try:
            await decoders.start_for([MODEL, VIDEO_MODEL])
            assert pool.modalities == {Modality.VIDEO}
        finally:
            await decoders.stop()

    asyncio.run(main())


def test_a_further_modality_brings_workers_that_decode_both() -> None:
    pytest.importorskip("av")

    async def main() -> None:
        pools: list[DecodePool] = []

        def create_pool() -> DecodePool:
            pools.append(DecodePool(1, LIMITS, timeout=30))
            return pools[-1]

        decoders = Decoders(create_pool)
        try:
            await decoders.start_for([AUDIO_MODEL])
            await decoders.start_for([VIDEO_MODEL])
            first, second = pools
            assert second.modalities == {Modality.AUDIO, Modality.VIDEO}
            async with asyncio.timeout(30):
                while first.ready:
                    await asyncio.sleep(0.01)
            await decoders.start_for([AUDIO_MODEL])
            assert second.ready
            assert len(pools) == 2
        finally:
            await decoders.stop()
        assert not second.ready

    asyncio.run(main())


def test_a_server_whose_workers_cannot_start_is_told_why() -> None:
    async def main() -> None:
        pool = DecodePool(1, LIMITS, 30, decoders={Modality.AUDIO: "no.such:decoder"})
        decoders = Decoders(lambda: pool)
        await decoders.start_for([AUDIO_MODEL])

    with pytest.raises(EngineStartError, match="TOME_DECODE_WORKERS") as caught:
        asyncio.run(main())
    assert caught.value.explained
