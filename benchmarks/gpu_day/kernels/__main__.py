"""Runs the step `benchmarks.gpu_day.kernels`; in a dry run tiny, in Triton's interpreter."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator

import torch

from benchmarks.gpu_day.accelerator import accelerator
from benchmarks.gpu_day.day import Day, begin, describe
from benchmarks.gpu_day.kernels.workload import Workload, measure

# Each has `workloads(device, dry)`, which yields one after the other, since together they would not
# fit.
MODULES = ("merging", "attention", "layers")
LEAST_SECONDS = 3  # in which a workload can be compiled and measured


def main(day: Day) -> None:
    """A row for each workload and variant."""
    if day.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, hence imports by name
        if why := broken_interpreter():
            day.write(
                what="interpreter",
                note=f"nothing can be tried here, for Triton's interpreter fails: {why}",
            )
            return
    on = accelerator(day.dry)
    on.allow_cudnn_attention(False)
    with torch.inference_mode():
        for name in MODULES:
            try:
                for workload in workloads(day, name, on.device.type):
                    measure(day, on, workload)
            except Exception as error:  # one module must not cost the others
                day.write(what=name, error=describe(error))
            on.free()
            if on.is_lost():
                day.write(what=name, error="the GPU fails at everything since then")
                return


def workloads(day: Day, name: str, device: str) -> Iterator[Workload]:
    """Those of a module, for as long as there is time."""
    for workload in importlib.import_module(f"benchmarks.gpu_day.kernels.{name}").workloads(
        device, day.dry
    ):
        if day.left < LEAST_SECONDS:
            day.write(what="left out", part=f"{workload.kernel} {workload.shape} and all after it")
            return
        yield workload


def broken_interpreter() -> str:
    """Why Triton's interpreter cannot run here (some versions conflict with NumPy's), or ''."""
    try:
        from tome_core.backends.cuda.attention import (
            launch_attention,  # which loops as often as a tensor says
        )

        launch_attention(*torch.ones(3, 2, 1, 16), None, torch.tensor([0, 2], dtype=torch.int32), 2)
    except Exception as error:
        return describe(error)
    return ""


if __name__ == "__main__":
    begin(main)
