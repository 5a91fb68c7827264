"""Run a variant over the images as in serving: same weights, pixels and inference transform."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import tome_core
from research.ablations.results import Result
from research.ablations.variants import Variant
from research.bench import Bench, describe_bench
from server.engine.execution.runner import Runner


def describe(bench: Bench, r: int, batch: int, seed: int) -> dict[str, Any]:
    """All that results depend on, and what the report says of the images."""
    black = round(black_patches(bench), 4)
    return describe_bench(bench) | {"black_patches": black, "r": r, "batch": batch, "seed": seed}


def black_patches(bench: Bench) -> float:
    """The share of all patches in which every pixel is 0."""
    embed: Any = bench.vit.patch_embed
    height, width = embed.patch_size
    pixels = bench.pixels
    images, channels = pixels.shape[:2]
    patches = pixels.reshape(
        images, channels, pixels.shape[2] // height, height, pixels.shape[3] // width, width
    )
    return float((patches.max(axis=(1, 3, 5)) == 0).mean())


def measure(
    bench: Bench,
    variant: Variant,
    r: int,
    batch: int,
    seed: int,
    advance: Callable[[int], object] = lambda images: None,
) -> Result:
    """Classify all images under ``variant``; ``advance`` gets the number done after each batch."""
    schedule = variant.schedule(r, bench.shape)
    network = tome_core.optimize(variant.patch(bench.vit), bench.dtype)
    runner = Runner(replace(bench.loaded, network=network), bench.device)
    torch.manual_seed(seed)
    correct = []
    started = time.perf_counter()
    for start in range(0, len(bench.pixels), batch):
        pixels = bench.pixels[start : start + batch]
        classes = runner.logits(pixels, [schedule] * len(pixels)).argmax(dim=-1).cpu().numpy()
        correct.append(classes == bench.labels[start : start + batch])
        advance(len(pixels))
    counts = network.token_counts(schedule, bench.shape.tokens)
    flops = round(network.cost().relative(counts), 4)
    seconds = round(time.perf_counter() - started, 1)
    return Result(np.concatenate(correct), str(schedule), counts[-1], flops, seconds)
