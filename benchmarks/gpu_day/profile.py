"""Step 4: device time of one forward pass: kernels, their kinds, and the gaps between them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import tome_core
from benchmarks.gpu_day.accelerator import Accelerator, Call, accelerator
from benchmarks.gpu_day.day import Day, begin
from benchmarks.gpu_day.models import MODELS, TINY, r_of

# Batch, r, and whether it is recorded.
CASES = (
    (256, "16", False),
    (256, "8", False),
    (256, "0", False),
    (256, "mixed", False),
    (32, "16", False),
    (1, "0", True),
    (1, "16", True),
)
PASSES = 3
TOP = 25

# The first that fits a kernel's name is its kind.
KINDS: tuple[tuple[str, str], ...] = (
    ("attention", r"flash|fmha|attention|mha_|sdpa|softmax"),
    ("sort", r"sort|topk|bitonic|radix"),
    ("layer norm", r"layer_?norm|rms_?norm"),
    ("scatter and index", r"scatter|gather|index|embedding"),
    ("copy", r"copy|memcpy|cat_?array|aten::cat"),
    (
        "matrix product",
        r"gemm|nvjet|cutlass|cublas|xmma|matmul|addmm|::mm|::bmm|linear|splitk|conv|wgrad|dgrad",
    ),
    ("reduction", r"reduce|argmax|norm_|cumsum|scan"),
    (
        "elementwise",
        r"elementwise|vectorized|fill|memset|aten::(add|mul|div|sub|log|gelu|where|masked)",
    ),
)


@dataclass(frozen=True)
class Kernel:
    """One run of a kernel, its times in microseconds."""

    name: str
    start: float
    end: float


def main(day: Day) -> None:
    """One row for each case."""
    on = accelerator(day.dry)
    on.allow_cudnn_attention(False)
    dtype = torch.float32 if day.dry else torch.bfloat16
    model = TINY if day.dry else MODELS["B"]
    network = tome_core.optimize(tome_core.patch(model.create(on.device)), dtype, in_place=True)
    for batch, r, recorded in ((3, "16", False), (2, "mixed", True)) if day.dry else CASES:
        if day.left < 2:
            day.write(what="left out", batch=batch, r=r, recorded=recorded)
            continue
        with (
            day.case(model=model.name, batch=batch, r=r, recorded=recorded) as row,
            torch.inference_mode(),
        ):
            images = torch.randn(
                batch, 3, model.pixels, model.pixels, device=on.device, dtype=dtype
            )
            call = _bind(network, images, r_of(r, batch))
            row.update(report(on, on.record(call) if recorded else call))


def _bind(network: Callable[..., Any], images: torch.Tensor, r: int | list[int]) -> Call:
    return lambda: network(images, r)


def report(on: Accelerator, call: Call) -> dict[str, Any]:
    """What a call of ``call`` consists of, on average of a few."""
    for _ in range(3):
        call()
    wall = on.seconds(call, 2 * PASSES)
    trace(on, call)  # the first one of a process sets the profiler up
    kernels = trace(on, call)
    busy, span = covered(kernels)
    total = sum(kernel.end - kernel.start for kernel in kernels)
    return {
        "launches": len(kernels) / PASSES,
        "device_ms": total / PASSES / 1000,
        "wall_ms": 1000 * wall,  # without the profiler
        "idle_share": max(0.0, 1 - total / PASSES / 1e6 / wall) if wall else None,
        "idle_share_profiled": 1 - busy / span if span else None,
        "kinds": kinds(kernels),
        "kernels": top(kernels),
    }


def trace(on: Accelerator, call: Call) -> list[Kernel]:
    """The kernels of a few calls in order of their start; on a CPU the innermost operators."""
    is_gpu = on.device.type == "cuda"
    on.synchronize()
    with profile(
        activities=[ProfilerActivity.CUDA if is_gpu else ProfilerActivity.CPU]
    ) as profiler:
        for _ in range(PASSES):
            call()
        on.synchronize()
    wanted = DeviceType.CUDA if is_gpu else DeviceType.CPU
    kernels = [
        Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == wanted
        and (is_gpu or not event.cpu_children)
        and not getattr(event, "is_user_annotation", False)
    ]
    return sorted(kernels, key=lambda kernel: kernel.start)


def covered(kernels: Sequence[Kernel]) -> tuple[float, float]:
    """Microseconds in which a kernel ran, and from the first start to the last end."""
    busy = 0.0
    reached = kernels[0].start if kernels else 0.0
    first = reached
    for kernel in kernels:
        busy += max(0.0, kernel.end - max(kernel.start, reached))
        reached = max(reached, kernel.end)
    return busy, reached - first


def kind_of(name: str) -> str:
    """What a kernel of this name does, as far as names tell."""
    return next(
        (kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "other"
    )


def kinds(kernels: Iterable[Kernel]) -> dict[str, dict[str, float]]:
    """By kind: launches and microseconds of a call."""
    found: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        found[kind_of(kernel.name)].append(kernel.end - kernel.start)
    return {
        kind: {"launches": len(times) / PASSES, "us": round(sum(times) / PASSES, 1)}
        for kind, times in sorted(found.items(), key=lambda item: -sum(item[1]))
    }


def top(kernels: Iterable[Kernel]) -> list[dict[str, Any]]:
    """The kernels that take most: launches and microseconds of a call, and their share."""
    found: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        found[kernel.name].append(kernel.end - kernel.start)
    total = sum(map(sum, found.values())) or 1.0
    most = sorted(found.items(), key=lambda item: -sum(item[1]))[:TOP]
    return [
        {
            "name": name[:300],
            "kind": kind_of(name),
            "launches": len(times) / PASSES,
            "us": round(sum(times) / PASSES, 1),
            "share": round(sum(times) / total, 4),
        }
        for name, times in most
    ]


if __name__ == "__main__":
    begin(main)
