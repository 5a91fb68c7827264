"""The hardware's bound: exact FLOPs of a schedule at the fastest matrix product measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import tome_core
from tome_core.backends.cpu import kernels

# Rows, inputs, outputs: large squares, and the linear layers of ViT-S and ViT-B on 32 images of 197
# tokens.
SHAPES = (
    (2048, 2048, 2048),
    (3072, 3072, 3072),
    (6304, 384, 1152),
    (6304, 384, 1536),
    (6304, 1536, 384),
    (6304, 768, 2304),
    (6304, 768, 3072),
    (6304, 3072, 768),
)
TRIES = 2


@dataclass(frozen=True)
class Gemm:
    """One matrix product that can be timed; ``name`` says how it is computed, and of what shape."""

    name: str
    flops: int
    run: Callable[[], object]


def model_macs(model: tome_core.MergedViT, tokens: int, r: Sequence[int]) -> int:
    """Multiply-accumulates of one batch of images with ``tokens`` input tokens merged by ``r``."""
    cost = model.cost()
    return sum(cost.macs(model.token_counts(one, tokens)) for one in r)


def bound_seconds(macs: int, flops_per_s: float) -> float:
    """Time for ``macs``, two FLOPs each, at ``flops_per_s``."""
    return 2 * macs / flops_per_s


def gemms(
    dtype: torch.dtype, device: torch.device, shapes: Sequence[tuple[int, int, int]] = SHAPES
) -> Iterator[Gemm]:
    """Each shape by PyTorch's linear layer and, on a CPU, by oneDNN's packed one and by ours."""
    for rows, inputs, outputs in shapes:
        x = torch.randn(rows, inputs, device=device).to(dtype)
        weight = torch.randn(outputs, inputs, device=device).to(dtype)
        shape = f"{rows}x{inputs}x{outputs}"
        flops = 2 * rows * inputs * outputs
        yield Gemm(f"linear {shape}", flops, partial(F.linear, x, weight))
        if device.type == "cpu" and (packed := _packed(x, weight)) is not None:
            yield Gemm(f"packed linear {shape}", flops, packed)
        if device.type == "cpu" and kernels.multiplies_fastest(weight):
            yield Gemm(
                f"our linear {shape}",
                flops,
                partial(kernels.linear, x, kernels.pack_linear(weight, None)),
            )


def fastest_gemm(candidates: Iterator[Gemm], synchronize: Callable[[], None]) -> Gemm:
    """The one of ``candidates`` with the most FLOPs per second, by the best of a few calls each."""
    best = None
    best_rate = 0.0
    with torch.inference_mode():
        for gemm in candidates:
            gemm.run()
            for _ in range(TRIES):
                synchronize()
                started = time.perf_counter()
                gemm.run()
                synchronize()
                rate = gemm.flops / (time.perf_counter() - started)
                if rate > best_rate:
                    best = gemm
                    best_rate = rate
    assert best is not None
    return best


def _packed(x: Tensor, weight: Tensor) -> Callable[[], object] | None:
    """OneDNN's linear layer on prepacked weights, or None if this torch or CPU has none."""
    try:
        with torch.inference_mode():
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))

            def run() -> Tensor:
                return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

            run()
    except (
        AttributeError,
        RuntimeError,
    ):  # private operators: absent or different in another torch
        return None
    return run
