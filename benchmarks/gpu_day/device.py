"""Step 0: the machine and its ceilings: copies, matrix products, launches, graph nodes."""

from __future__ import annotations

import inspect
import os
import platform
import shutil
import subprocess
import time
from functools import partial
from importlib import metadata
from typing import Any

import torch

from benchmarks.gpu_day.accelerator import Accelerator, accelerator
from benchmarks.gpu_day.day import Day, begin

PACKAGES = (
    "torch",
    "triton",
    "timm",
    "numpy",
    "pillow",
    "pydantic",
    "fastapi",
    "uvicorn",
    "httptools",
    "uvloop",
)
LAUNCHES = 1000


def main(day: Day) -> None:
    """One row for each thing that is measured."""
    on = accelerator(day.dry)
    with day.case(what="versions") as row:
        row.update(
            python=platform.python_version(), cpus=len(os.sched_getaffinity(0)), **versions()
        )
    with day.case(what="card") as row:
        row.update(card(day.dry))
    with day.case(what="varlen") as row:
        row["signature"] = varlen_signature()
    with day.case(what="compilers") as row:
        row.update({name: shutil.which(name) for name in ("cc", "gcc", "c++", "nvcc", "ptxas")})
    copies(day, on)
    products(day, on)
    launches(day, on)
    waits(day, on)


def varlen_signature() -> str | None:
    """What attention over offsets takes in this torch; None where there is none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return str(inspect.signature(varlen_attn))


def versions() -> dict[str, Any]:
    """Of the packages that matter, and of what torch was built with."""
    found: dict[str, Any] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found | {"cuda": torch.version.cuda}


def card(dry: bool) -> dict[str, Any]:
    """Name, memory, multiprocessors, driver."""
    if dry:
        return {"name": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    query = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.max.sm,power.limit",
        "--format=csv,noheader",
    ]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        told = str(error)
    return {
        "name": properties.name,
        "gib": properties.total_memory / 2**30,
        "multiprocessors": properties.multi_processor_count,
        "capability": torch.cuda.get_device_capability(0),
        "driver": told,
        "cudnn": torch.backends.cudnn.version(),
    }


def copies(day: Day, on: Accelerator) -> None:
    """GB/s of copies within the device, and to it from page-locked and from plain memory."""
    size = 1 << 16 if day.dry else 4 << 30
    with day.case(what="copy within the device, read and written", unit="GB/s") as row:
        source = torch.ones(size, dtype=torch.uint8, device=on.device)
        target = torch.empty_like(source)
        row["value"] = 2 * size / best(on, partial(target.copy_, source), 10) / 1e9
    size = 1 << 16 if day.dry else 256 << 20
    for pinned in (True, False):
        with day.case(
            what=f"copy to the device, {'page-locked' if pinned else 'plain'} memory", unit="GB/s"
        ) as row:
            source = torch.ones(size, dtype=torch.uint8, pin_memory=pinned and not day.dry)
            target = torch.empty(size, dtype=torch.uint8, device=on.device)
            row["value"] = (
                size / best(on, partial(target.copy_, source, non_blocking=True), 5) / 1e9
            )


def products(day: Day, on: Accelerator) -> None:
    """TFLOP/s of a square matrix product of random numbers."""
    side = 64 if day.dry else 8192
    for name, dtype in (
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("tf32", torch.float32),
        ("fp32", torch.float32),
    ):
        with day.case(what=f"matrix product {name}", unit="TFLOP/s") as row:
            if not day.dry:
                torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
            a, b = (torch.randn(side, side, device=on.device, dtype=dtype) for _ in range(2))
            row["value"] = 2 * side**3 / best(on, partial(torch.matmul, a, b), 10) / 1e12


def launches(day: Day, on: Accelerator) -> None:
    """Microseconds of a tiny kernel: started by the host one by one, and as a node of a graph."""
    count = 10 if day.dry else LAUNCHES
    x = torch.zeros(32, device=on.device)

    def tiny() -> None:
        for _ in range(count):
            x.add_(1)

    with day.case(what="launch of a tiny kernel, host", unit="us") as row:
        tiny()
        on.synchronize()
        started = time.perf_counter()
        tiny()
        row["value"] = 1e6 * (time.perf_counter() - started) / count
    with day.case(what="tiny kernels started one by one", unit="us") as row:
        row["value"] = 1e6 * best(on, tiny, 1) / count
    with day.case(what="node of a graph", unit="us") as row:
        row["value"] = 1e6 * best(on, on.record(tiny), 3) / count
    with day.case(what="replay of a graph of one node", unit="us") as row:
        row["value"] = 1e6 * best(on, on.record(lambda: x.add_(1)), 100)


def waits(day: Day, on: Accelerator) -> None:
    """Microseconds until the host has read a small result, which it waits for."""
    small = torch.zeros(32, 5, device=on.device)
    with day.case(what="small result read by the host", unit="us") as row:
        small.cpu()
        on.synchronize()
        started = time.perf_counter()
        for _ in range(50):
            small.add_(1).cpu()
        row["value"] = 1e6 * (time.perf_counter() - started) / 50


def best(on: Accelerator, call: Any, count: int) -> float:
    """Seconds per call: shortest mean of ``count`` calls in five turns, after two of warm-up."""
    on.seconds(call, 1)
    on.seconds(call, 1)
    return min(on.seconds(call, count) for _ in range(5))


if __name__ == "__main__":
    begin(main)
