"""What takes a while, beside the event loop, in a bounded pool of threads: decoding, and drawing pictures."""

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
    """Decodes in ``threads`` threads at most; what waits for one is bounded by the slots. A bad image ends here, alone.

    The result is copied into its slot by the event loop, tens of microseconds for one image: a
    thread that wrote there itself could still be writing when a client has gone away and the slot
    belongs to the next request.
    """

    def __init__(self, threads: int, max_pixels: int, max_side: int) -> None:
        self._max_pixels = max_pixels
        self._max_side = max_side
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def decode(
        self, body: Callable[[], bytes], transform: Transform
    ) -> npt.NDArray[np.uint8]:
        """See `server.imaging.decode.decode`.

        Args:
            body: called by the thread when it begins. What waits in the pool's queue holds no
                bytes, since a request that is cancelled meanwhile leaves it there.
        """

        def work() -> npt.NDArray[np.uint8]:
            return decode(body(), transform, self._max_pixels, self._max_side)

        return await self.run(work)

    async def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, from one of the threads.

        The threads take what comes first. Whatever waits here after its image ran was decoded here
        before, so it is bounded by the slots too.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
