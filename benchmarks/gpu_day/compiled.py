"""Step 6: `torch.compile` of the timm model as a peer, with CUDA graphs."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_day.accelerator import accelerator, in_turns, median
from benchmarks.gpu_day.day import Day, begin
from benchmarks.gpu_day.models import MODELS, TINY

BATCHES = (256, 1, 32)
ROUNDS = 5
TURN_SECONDS = 0.04


def main(day: Day) -> None:
    """One row for each batch size: how long it compiled, and how fast it is."""
    on = accelerator(day.dry)
    dtype = torch.float32 if day.dry else torch.bfloat16
    model = TINY if day.dry else MODELS["B"]
    # Where the day is dry the code of the compiler is not what is tried, and a compiler of C++ may
    # be missing.
    how: dict[str, Any] = {"backend": "eager"} if day.dry else {"mode": "reduce-overhead"}
    vit = model.create(on.device).to(dtype)
    for batch in (2,) if day.dry else BATCHES:
        with day.case(model=model.name, batch=batch, contender="compile", r="0") as row:
            torch.compiler.reset()
            compiled = torch.compile(vit, dynamic=False, fullgraph=True, **how)
            images = torch.randn(
                batch, 3, model.pixels, model.pixels, device=on.device, dtype=dtype
            )
            with torch.no_grad():
                started = time.perf_counter()
                for _ in range(3):  # compiles, warms up, records
                    compiled(images)
                on.synchronize()
                row["compile_s"] = time.perf_counter() - started
                times = in_turns(
                    on,
                    {"": partial(compiled, images)},
                    2 if day.dry else ROUNDS,
                    0.0 if day.dry else TURN_SECONDS,
                    day.until,
                )
            seconds = median(times[""])
            row.update(ms=1000 * seconds, images_per_s=batch / seconds)


if __name__ == "__main__":
    begin(main)
