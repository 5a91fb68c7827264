"""What a request consists of, each part alone: the forward pass and the decoding, without a server."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from server.decode import decode
from server.memory import keep_freed_memory
from server.offline import load_runner, pick_model
from server.settings import ModelSettings, Settings
from tome_core.schedule import Schedule

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
REPEATS = 5
DECODE_REPEATS = 50


@dataclass(frozen=True)
class Parts:
    """Seconds of each part, by r where they depend on it.

    Attributes:
        decode: of one image, from its bytes to the model's pixels, in one thread.
        batch: of a full batch of ``images``, from pixels to predictions.
        single: the same for one image.
    """

    decode: float
    images: int
    batch: dict[int, float]
    single: dict[int, float]

    def bound(self, levels: Sequence[int], cores: int) -> float:
        """Images/s that the parts allow when images take ``levels`` in turn and ``cores`` also have to decode."""
        forward = statistics.mean(self.batch[r] for r in levels) / self.images
        return 1 / (forward + self.decode / cores)


def measure_parts(config: Path, image: bytes, levels: Sequence[int], images: int, threads: int, dtype: Dtype) -> Parts:
    """Time the first model of ``config`` in batches of ``images``, and the decoding of ``image``, as served."""
    keep_freed_memory()
    settings = ModelSettings(config=config, dtype=dtype, threads=threads)
    runner = load_runner(settings, pick_model(settings, ""))
    limits = [Settings.model_fields[name].default for name in ("max_pixels", "max_side")]
    transform = runner.model.transform
    return Parts(
        decode=_median(lambda: decode(image, transform, *limits), DECODE_REPEATS),
        images=images,
        batch={r: _median(partial(runner.seconds, [Schedule.constant(r)] * images), REPEATS) for r in levels},
        single={r: _median(partial(runner.seconds, [Schedule.constant(r)]), 3 * REPEATS) for r in levels},
    )


def _median(call: Callable[[], object], repeats: int) -> float:
    """Seconds of ``call``, after one that does not count."""
    call()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
