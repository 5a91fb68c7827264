from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from server.api.pipeline.decode_pool import DecodePool
from server.errors import TooLarge, UnsupportedFormat
from server.imaging.decode import decode
from tests.server.api.pipeline.fakes import MODEL
from tests.server.wire import SNEAKER


def decode_in_pool(body: bytes, max_pixels: int = 1_000_000) -> np.ndarray:
    async def main() -> np.ndarray:
        return await DecodePool(1, max_pixels, 4000).decode(lambda: body, MODEL.transform)

    return asyncio.run(main())


def test_an_image_is_decoded_as_by_the_decoder_itself():
    expected = decode(SNEAKER, MODEL.transform, 1_000_000, 4000)
    np.testing.assert_array_equal(decode_in_pool(SNEAKER), expected)


def test_a_bad_image_fails_with_the_error_of_the_decoder():
    with pytest.raises(UnsupportedFormat):
        decode_in_pool(b"hello")


def test_the_limits_of_the_pool_apply():
    with pytest.raises(TooLarge):
        decode_in_pool(SNEAKER, max_pixels=10)


def test_a_call_that_waits_for_a_thread_has_not_got_its_body():
    """A request that is cancelled meanwhile must not leave its bytes in the queue."""
    pool = DecodePool(1, 1_000_000, 4000)
    release_thread = threading.Event()
    bodies = [SNEAKER]

    async def main() -> None:
        blocker = asyncio.create_task(pool.run(lambda: release_thread.wait(30)))
        waiting = asyncio.create_task(pool.decode(bodies.pop, MODEL.transform))
        await asyncio.sleep(0.05)
        assert bodies == [SNEAKER]
        release_thread.set()
        await asyncio.gather(blocker, waiting)
        assert bodies == []

    asyncio.run(main())


def test_functions_run_outside_the_event_loop():
    pool = DecodePool(1, 1_000_000, 4000)

    async def main() -> str:
        return await pool.run(lambda: threading.current_thread().name)

    assert asyncio.run(main()).startswith("decode")
