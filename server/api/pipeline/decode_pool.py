"""A bounded pool of threads for work that would block the event loop: decoding and drawing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from server.imaging.decode import decode
from server.imaging.transform import Transform

T = TypeVar("T")


class DecodePool:
    """Decodes images in at most ``threads`` threads. A bad image fails here, before any batch.

    The number of slots bounds the queue of the pool. The event loop copies the pixels into the
    slot, which takes tens of microseconds for one image. A thread must not write them there: it
    could still be writing when the client has disconnected and another request holds the slot.
    """

    def __init__(self, threads: int, max_pixels: int, max_side: int) -> None:
        self._max_pixels = max_pixels
        self._max_side = max_side
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def decode(
        self,
        get_body: Callable[[], bytes],
        transform: Transform,
    ) -> npt.NDArray[np.uint8]:
        """Decode an image as `server.imaging.decode.decode` does, and raise what it raises.

        Args:
            get_body: returns the encoded image when the thread begins. So a call that waits in the
                queue holds no bytes: after a cancellation it stays there until a thread takes it.
        """

        def decode_body() -> npt.NDArray[np.uint8]:
            return decode(get_body(), transform, self._max_pixels, self._max_side)

        return await self.run(decode_body)

    async def run(self, function: Callable[[], T]) -> T:
        """Return the result of ``function``, which runs in one of the threads.

        Calls run first come, first served. A picture is drawn here only after its image was decoded
        here, so the number of slots bounds these calls as well.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)
