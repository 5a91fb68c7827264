"""The real decoder of video in confined workers: what it needs, it has."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from server.decoding.pool import DECODERS, DecodePool
from server.errors import RequestError, TooLarge
from server.media.limits import VideoLimits
from server.media.modality import Modality
from server.media.transforms import VideoTransform
from tests.server.decoding.pools import running_pool, until

pytest.importorskip("av")
front_end = pytest.importorskip("server.video.front_end")

from tests.hostile.build_videos import encode  # noqa: E402
from tests.hostile.videos import hostile_videos, seeds  # noqa: E402

TRANSFORM = VideoTransform(frames=4, tubelet=2, height=32, width=32, resize=36, clips=2, crops=3)
ONE_CLIP = VideoTransform(frames=4, tubelet=2, height=32, width=32, resize=32)
LIMITS = VideoLimits()
OPTIONS: dict[str, Any] = {
    "limits": {Modality.VIDEO: LIMITS},
    "decoders": DECODERS,
    "modalities": (Modality.VIDEO,),
}
ADDRESS_SPACE = 260_000_000


async def outcome(pool: DecodePool, body: bytes) -> int:
    """The status of what comes of a video."""
    try:
        await pool.decode(body, ONE_CLIP)
    except RequestError as error:
        return error.status
    return 200


def test_workers_decode_as_this_process_does() -> None:
    async def main() -> None:
        async with running_pool(**OPTIONS) as pool:
            for codec, body in seeds().items():
                expected = front_end.prepare(body, TRANSFORM, LIMITS)
                decoded = await pool.decode(body, TRANSFORM)
                assert decoded.inputs.dtype == np.uint8
                np.testing.assert_array_equal(decoded.inputs, expected.inputs, codec)
                assert (decoded.windows, decoded.media) == (expected.windows, expected.media)

    asyncio.run(main())


def test_a_video_that_takes_more_memory_than_a_worker_has_is_too_large() -> None:
    body = encode(count=20, size=(1920, 1088), x264_params="ref=16:level=6.2")
    lost: list[str] = []

    async def main() -> None:
        async with running_pool(
            **OPTIONS, address_space=ADDRESS_SPACE, on_worker_lost=lost.append
        ) as pool:
            assert await outcome(pool, seeds()["H.264"]) == 200
            with pytest.raises(TooLarge, match="MB of memory"):
                await pool.decode(body, TRANSFORM)
            await until(lambda: bool(lost))

    asyncio.run(main())
    assert lost == ["memory"]


def test_hostile_videos_cost_no_worker() -> None:
    videos = hostile_videos()
    lost: list[str] = []

    async def main() -> None:
        async with running_pool(**OPTIONS, on_worker_lost=lost.append) as pool:
            found = {name: await outcome(pool, body) for name, (body, _) in videos.items()}
            assert found == {name: status for name, (_, status) in videos.items()}

    asyncio.run(main())
    assert lost == []
