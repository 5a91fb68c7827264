"""What a request consists of, each part alone: the forward pass and the decoding, without a server.

In a process of its own, with the environment that an engine has: how long its idle threads wait for
work, awake, before they sleep makes a difference of milliseconds to a forward pass of one image.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from server.commands.offline import load_runner, pick_model
from server.imaging.decode import decode
from server.media.transforms import ImageTransform
from server.settings import ModelSettings, Settings
from server.supervision.child import environment
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
        """Bound in images/s with ``levels`` in turn, when ``cores`` also have to decode."""
        forward = statistics.mean(self.batch[r] for r in levels) / self.images
        return 1 / (forward + self.decode / cores)


def measure_parts(
    config: Path, image: Path, levels: Sequence[int], images: int, threads: int, dtype: Dtype
) -> Parts:
    """Time the first model of ``config`` in batches of ``images``, and decoding ``image``."""
    request = {"config": str(config), "image": str(image), "levels": levels, "images": images}
    command = [
        sys.executable,
        "-m",
        "benchmarks.parts",
        json.dumps(request | {"threads": threads, "dtype": dtype}),
    ]
    printed = subprocess.run(
        command, env=environment(), check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    found = json.loads(printed.splitlines()[-1])
    by_level = {
        name: {int(r): seconds for r, seconds in found[name].items()}
        for name in ("batch", "single")
    }
    return Parts(found["decode"], images, **by_level)


def _measure(
    config: str, image: str, levels: Sequence[int], images: int, threads: int, dtype: Dtype
) -> Parts:
    settings = ModelSettings(config=Path(config), dtype=dtype, threads=threads)
    runner = load_runner(settings, pick_model(settings, ""))
    limits = [Settings.model_fields[name].default for name in ("max_pixels", "max_side")]
    transform = runner.model.transform
    assert isinstance(transform, ImageTransform)
    body = Path(image).read_bytes()
    return Parts(
        decode=_median(lambda: decode(body, transform, *limits), DECODE_REPEATS),
        images=images,
        batch={
            r: _median(partial(runner.seconds, [Schedule.constant(r)] * images), REPEATS)
            for r in levels
        },
        single={
            r: _median(partial(runner.seconds, [Schedule.constant(r)]), 3 * REPEATS) for r in levels
        },
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


if __name__ == "__main__":
    print(json.dumps(asdict(_measure(**json.loads(sys.argv[1])))))
