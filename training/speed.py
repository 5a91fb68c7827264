"""Measure the images/s of whole training steps: `python -m training.speed`.

Each variant changes one property of the recipe's training step. A step has 197 tokens unless the
variant changes the patch size. The variants take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

import tome_core
from server.allocator import keep_freed_memory
from tome_core.attention import explicit_attention, fused_attention
from tome_core.backends.reference import ReferenceStrategy
from tome_core.execution import Execution
from training.masters import MasterAdamW
from training.models import Teacher, vit


@dataclass(frozen=True)
class Variant:
    """One variant of the training step."""

    name: str
    batch_size: int = 128
    patch_size: int = 2
    dtype: torch.dtype = torch.bfloat16
    explicit: bool = True
    compiled: bool = False
    teacher: bool = True
    r: int = 0


BASE = Variant("the recipe's step without merging")
VARIANTS = (
    BASE,
    replace(BASE, name="float32 weights", dtype=torch.float32, explicit=False),
    replace(BASE, name="PyTorch's fused attention", explicit=False),
    replace(BASE, name="blocks compiled", compiled=True),
    replace(BASE, name="without a teacher", teacher=False),
    replace(BASE, name="batch of 32", batch_size=32),
    replace(BASE, name="batch of 64", batch_size=64),
    replace(BASE, name="batch of 256", batch_size=256),
    replace(BASE, name="merging, r=8", r=8),
    replace(BASE, name="merging, r=13", r=13),
    replace(BASE, name="merging, r=16", r=16),
    replace(BASE, name="merging, r=20", r=20),
    replace(BASE, name="patches of 4 x 4", patch_size=4),
    replace(BASE, name="patches of 4 x 4, compiled", patch_size=4, compiled=True),
    replace(BASE, name="patches of 7 x 7", patch_size=7),
)


def make_step(variant: Variant) -> Callable[[], None]:
    """Return a function that runs one training step on random images."""
    torch.manual_seed(0)
    model: Any = tome_core.patch(vit(variant.patch_size).to(variant.dtype)).train()
    attention = explicit_attention if variant.explicit else fused_attention
    model.execution = Execution(ReferenceStrategy(attention))
    if variant.compiled:  # Compile the plain timm model: the merging model does not compile.
        for block in model.adapter.network.blocks:
            block.compile()
        model = model.adapter.network
    optimizer = MasterAdamW(model, 0.05)
    teacher = (
        Teacher().to(variant.dtype).to(memory_format=torch.channels_last).eval()
        if variant.teacher
        else None
    )
    images = torch.randn(variant.batch_size, 1, 28, 28, dtype=variant.dtype)
    labels = torch.randint(10, (variant.batch_size,))

    def step() -> None:
        logits = model(images) if variant.compiled else model(images, r=variant.r)
        loss = F.cross_entropy(logits.float(), labels)
        if teacher is not None:
            loss = loss + teacher_divergence(teacher, images, logits)
        loss.backward()
        optimizer.step(1e-4)

    return step


def teacher_divergence(teacher: nn.Module, images: Tensor, logits: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence from the teacher, as in the recipe's loss."""
    with torch.no_grad():
        target = teacher(images).float().log_softmax(-1)
    return F.kl_div(logits.float().log_softmax(-1), target, log_target=True, reduction="batchmean")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="run only the variants whose name contains this")
    args = parser.parse_args()
    keep_freed_memory()
    chosen = [v for v in VARIANTS if args.only in v.name]
    steps = [make_step(v) for v in chosen]
    for step in track(steps, "warm-up"):
        step()
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in track(range(args.rounds), "rounds"):
        for times, step in zip(seconds, steps, strict=True):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
    speeds = [
        v.batch_size / statistics.median(times) for v, times in zip(chosen, seconds, strict=True)
    ]
    print("| step | images/s | ratio |\n| --- | ---: | ---: |")
    for variant, speed in zip(chosen, speeds, strict=True):
        print(f"| {variant.name} | {speed:.0f} | {speed / speeds[0]:.2f} |")


if __name__ == "__main__":
    main()
